"""Let the database itself refuse to change or delete a line of the audit log."""

from django.db import migrations

# What an event speaks of may be deleted: then its foreign keys, and nothing else, become null.
FORWARD = """
CREATE FUNCTION registry_event_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE'
        AND (NEW.user_id IS NULL OR NEW.user_id IS NOT DISTINCT FROM OLD.user_id)
        AND (NEW.namespace_id IS NULL OR NEW.namespace_id IS NOT DISTINCT FROM OLD.namespace_id)
        AND to_jsonb(NEW) - 'user_id' - 'namespace_id' = to_jsonb(OLD) - 'user_id' - 'namespace_id'
    THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'the audit log is append-only' USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER registry_event_append_only BEFORE UPDATE OR DELETE ON registry_event
    FOR EACH ROW EXECUTE FUNCTION registry_event_is_append_only();
"""
BACKWARD = """
DROP TRIGGER registry_event_append_only ON registry_event;
DROP FUNCTION registry_event_is_append_only();
"""


class Migration(migrations.Migration):
    dependencies = [("registry", "0009_direct_upload")]

    operations = [migrations.RunSQL(FORWARD, BACKWARD)]
