"""Budgets of requests, used up or full again without waiting for it."""

import time

import redis
from django.conf import settings

from registry import rates


def use_up(caller, budget=rates.REQUESTS, *, seconds=29.0):
    """Leave nothing of a budget for so long; give the moment at which something will be there."""
    free_at = time.time() + seconds
    with redis.Redis.from_url(settings.REDIS_URL) as store:
        full = int((free_at + rates.WINDOW_SECONDS) * 1_000_000)
        store.set(rates.key_of(caller, budget), full, px=120_000)
    return free_at


def refill(caller, budget=rates.REQUESTS):
    """Let the time go by after which a budget is full again."""
    with redis.Redis.from_url(settings.REDIS_URL) as store:
        assert store.delete(rates.key_of(caller, budget)) == 1
