"""People's accounts, for whoever administers the installation."""

from allauth.mfa.models import Authenticator
from django.db.models import Exists, OuterRef, QuerySet
from django.http.response import HttpResponseBase
from django.urls import reverse
from rest_framework.request import Request
from rest_framework.response import Response

from registry.api.pagination import page_response
from registry.api.v1 import schemas, wire
from registry.api.v1.openapi import operation
from registry.api.v1.resource import Resource, created, idempotent, no_content
from registry.models import User
from registry.pages import Page, check_limit, newest_first
from registry.services import people


def _people() -> QuerySet[User]:
    factors = Authenticator.objects.filter(user=OuterRef("pk"))
    return User.objects.annotate(has_second_factor=Exists(factors))


def _user_body(user: User) -> wire.Row:
    return {
        "username": user.username,
        "email": user.email,
        "is_active": user.is_active,
        "is_admin": user.is_superuser,
        "has_password": user.has_usable_password(),
        "has_second_factor": getattr(user, "has_second_factor", False),
        "created_at": user.date_joined,
        "last_sign_in_at": user.last_login,
    }


def _fresh(user: User) -> wire.Row:
    return _user_body(_people().get(pk=user.pk))


class UserList(Resource):
    @operation(
        "list_users",
        "List everybody's accounts, newest first; for administrators, with the scope admin.",
        {200: schemas.UserPage},
        query=schemas.Paging,
        gives=("Link",),
    )
    def get(self, request: Request) -> Response:
        people.require_administrator(self.actor)
        asked = self.query(schemas.Paging)
        found, after = newest_first(_people(), "users", check_limit(asked.limit), asked.cursor)
        return page_response(request, Page([_user_body(user) for user in found], after))

    @operation(
        "create_user",
        "Make an account and the namespace of its name; for administrators.",
        {201: schemas.User},
        body=schemas.NewUser,
        headers=("Idempotency-Key",),
    )
    @idempotent
    def post(self, request: Request) -> Response:
        new = self.body(schemas.NewUser)
        user = people.add_person(actor=self.actor, **new.model_dump())
        return created(_fresh(user), reverse("api:user", args=[user.username]))


class UserOne(Resource):
    @operation("get_user", "Read one account; for administrators.", {200: schemas.User})
    def get(self, request: Request, username: str) -> Response:
        return Response(_fresh(people.find_person(self.actor, username)))

    @operation(
        "change_user",
        "Switch an account off or on, at once at every door; make somebody administrator or not.",
        {200: schemas.User},
        body=schemas.UserChanges,
    )
    def patch(self, request: Request, username: str) -> Response:
        changes = self.changes(schemas.UserChanges)
        user = people.change_person(actor=self.actor, username=username, **changes)
        return Response(_fresh(user))


class UserPassword(Resource):
    @operation(
        "set_password",
        "Give somebody a new password; whoever was signed in as them no longer is.",
        {204: None},
        body=schemas.NewPassword,
    )
    def put(self, request: Request, username: str) -> HttpResponseBase:
        new = self.body(schemas.NewPassword)
        people.set_password(actor=self.actor, username=username, password=new.password)
        return no_content()


class UserFactors(Resource):
    @operation(
        "reset_factors",
        "Take somebody's second factors and passkeys away, when the telephone is lost.",
        {204: None},
    )
    def delete(self, request: Request, username: str) -> HttpResponseBase:
        people.reset_factors(actor=self.actor, username=username)
        return no_content()
