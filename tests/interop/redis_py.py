"""The Lock of redis-py, driven like ours.cpp. With a ttl of 0 it has no expiry."""

import os
import random
import sys
import time

import redis
from redis.exceptions import LockNotOwnedError

key, log = sys.argv[1:]
client = redis.Redis.from_url(os.environ["REDIS_URL"])
lock = None


def fresh(ttl):
    global lock
    lock = client.lock(key, timeout=ttl / 1000 or None, sleep=0.005)
    return lock


def done(change, *arguments, **options):
    try:
        change(*arguments, **options)
        return "confirmed"
    except LockNotOwnedError:
        return "refused"


def look():
    value = client.get(key)
    return f"{value.decode()} {client.pttl(key)}" if value else "free"


def work(span):
    sections = 0
    end = time.monotonic() + span / 1000
    while time.monotonic() < end:
        with fresh(60000):
            with open(log) as file:
                before = file.read()
            time.sleep(0.001)
            with open(log, "w") as file:
                file.write(before + "p")
        sections += 1
        time.sleep(random.random() / 25)
    return sections


verbs = {
    "lock": lambda ttl: "held" if fresh(ttl).acquire(blocking=False) else "busy",
    "wait": lambda ttl, span: "held" if fresh(ttl).acquire(blocking_timeout=span / 1000) else "busy",
    "extend": lambda ttl: done(lock.extend, ttl / 1000, replace_ttl=True),
    "unlock": lambda: done(lock.release),
    "token": lambda: lock.local.token.decode(),
    "look": look,
    "work": work,
}
for line in sys.stdin:
    verb, *numbers = line.split()
    print(verbs[verb](*map(int, numbers)), flush=True)
