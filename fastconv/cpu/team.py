"""Threads that wait for work without Python's lock: what makes a job of 50 microseconds worth two threads.

A thread that Python put to sleep wakes in two steps: it is woken, and then waits for the GIL, which the caller holds
until it is in its kernel. Here a worker is a Python thread that calls `serve` once, releases the GIL and stays: it
spins for a while after each job, since layers follow each other closely, and then sleeps on one of Python's own locks,
which need no GIL. `share` hands a job to workers that are idle, takes part in it, and returns when all that joined have
left it.

A *job* is a range of tasks cut into chunks, which participants take by an atomic counter. A *slot* is how a worker is
reached: 0 while it is idle, the address of a job that is posted to it, 1 while it is busy. Posting and accepting are
single atomic exchanges, so any number of callers may share the workers; a job that a worker was too slow to accept is
withdrawn, and nobody waits for it.
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
from functools import cache
from typing import Any

import llvmlite.binding as llvm

from fastconv.cpu.objects import assemble, link
from fastconv.settings import available_cores

_MOST = 255  # workers
_WORDS = 16  # of a slot: two cache lines, so that workers do not disturb each other
# Words of a slot; the first slot is the team's own: the address of `share`, the number of workers, a lock always held.
_JOB, _ASLEEP, _LOCK, _SPINS = range(4)
SHARE, _WORKERS, _HELD = range(3)

_SPIN = 5000  # pauses, about 0.1 ms, after which who waits goes to sleep

_SOURCE = """
; A job: what runs a part of it and with what, tasks, chunks, next chunk, participants so far, workers that were sent
; for and have not left, whether a part failed.
%Job = type { ptr, ptr, i64, i64, i64, i64, i64, i64 }

declare i32 @PyThread_acquire_lock(ptr, i32)
declare i32 @PyThread_acquire_lock_timed(ptr, i64, i32)
declare void @PyThread_release_lock(ptr)

PAUSE

define internal void @participate(ptr %job) {
entry:
  %run = load ptr, ptr %job
  %arguments.at = getelementptr %Job, ptr %job, i32 0, i32 1
  %arguments = load ptr, ptr %arguments.at
  %tasks.at = getelementptr %Job, ptr %job, i32 0, i32 2
  %tasks = load i64, ptr %tasks.at
  %chunks.at = getelementptr %Job, ptr %job, i32 0, i32 3
  %chunks = load i64, ptr %chunks.at
  %next = getelementptr %Job, ptr %job, i32 0, i32 4
  %participants = getelementptr %Job, ptr %job, i32 0, i32 5
  %failed = getelementptr %Job, ptr %job, i32 0, i32 7
  %number = atomicrmw add ptr %participants, i64 1 seq_cst
  br label %take
take:
  %chunk = atomicrmw add ptr %next, i64 1 seq_cst
  %is.left = icmp ult i64 %chunk, %chunks
  br i1 %is.left, label %compute, label %done
compute:
  %chunk.next = add i64 %chunk, 1
  %below = mul i64 %tasks, %chunk
  %above = mul i64 %tasks, %chunk.next
  %first = udiv i64 %below, %chunks
  %last = udiv i64 %above, %chunks
  %status = call i32 %run(ptr %arguments, i64 %first, i64 %last, i64 %number)
  %is.failed = icmp ne i32 %status, 0
  br i1 %is.failed, label %fail, label %take
fail:
  store atomic i64 1, ptr %failed seq_cst, align 8
  br label %take
done:
  ret void
}

; A worker's life.
define void @serve(ptr %slot) {
entry:
  %asleep = getelementptr i64, ptr %slot, i64 ASLEEP
  %lock.at = getelementptr i64, ptr %slot, i64 LOCK
  %lock = load ptr, ptr %lock.at
  %spins.at = getelementptr i64, ptr %slot, i64 SPINS
  %spins = load i64, ptr %spins.at
  br label %idle
idle:
  %spun = phi i64 [0, %entry], [%spun.more, %spin], [0, %sleep], [0, %stay], [0, %withdrawn], [0, %join]
  %posted = load atomic i64, ptr %slot seq_cst, align 8
  %is.posted = icmp ne i64 %posted, 0
  br i1 %is.posted, label %accept, label %wait
wait:
  %spun.more = add i64 %spun, 1
  %is.patient = icmp ult i64 %spun, %spins
  br i1 %is.patient, label %spin, label %lie.down
spin:
  call void @pause()
  br label %idle
lie.down:
  store atomic i64 1, ptr %asleep seq_cst, align 8
  %late = load atomic i64, ptr %slot seq_cst, align 8
  %is.late = icmp ne i64 %late, 0
  br i1 %is.late, label %stay, label %sleep
stay: ; a job came meanwhile; if whoever posted it has seen us asleep, the lock is or will be released
  %seen = atomicrmw xchg ptr %asleep, i64 0 seq_cst
  %is.seen = icmp eq i64 %seen, 0
  br i1 %is.seen, label %sleep, label %idle
sleep:
  call i32 @PyThread_acquire_lock(ptr %lock, i32 1)
  br label %idle
accept:
  %address = atomicrmw xchg ptr %slot, i64 1 seq_cst
  %is.withdrawn = icmp eq i64 %address, 0
  br i1 %is.withdrawn, label %withdrawn, label %join
withdrawn:
  store atomic i64 0, ptr %slot seq_cst, align 8
  br label %idle
join:
  %job = inttoptr i64 %address to ptr
  call void @participate(ptr %job)
  store atomic i64 0, ptr %slot seq_cst, align 8 ; idle before the caller can go on to its next job
  %here = getelementptr %Job, ptr %job, i32 0, i32 6
  atomicrmw sub ptr %here, i64 1 seq_cst
  br label %idle
}

; Run a job with at most so many helpers; 0 if all went well.
define i32 @share(ptr %team, i64 %helpers, ptr %run, ptr %arguments, i64 %tasks, i64 %chunks) {
entry:
  %job = alloca %Job
  store %Job zeroinitializer, ptr %job
  store ptr %run, ptr %job
  %arguments.at = getelementptr %Job, ptr %job, i32 0, i32 1
  store ptr %arguments, ptr %arguments.at
  %tasks.at = getelementptr %Job, ptr %job, i32 0, i32 2
  store i64 %tasks, ptr %tasks.at
  %chunks.at = getelementptr %Job, ptr %job, i32 0, i32 3
  store i64 %chunks, ptr %chunks.at
  %here = getelementptr %Job, ptr %job, i32 0, i32 6
  %failed = getelementptr %Job, ptr %job, i32 0, i32 7
  %address = ptrtoint ptr %job to i64
  %workers.at = getelementptr i64, ptr %team, i64 WORKERS
  %workers = load atomic i64, ptr %workers.at seq_cst, align 8
  %held.at = getelementptr i64, ptr %team, i64 HELD
  %held = load ptr, ptr %held.at
  br label %look
look:
  %at = phi i64 [0, %entry], [%at.next, %taken], [%at.next, %posted]
  %helping = phi i64 [0, %entry], [%helping, %taken], [%helping.more, %posted]
  %is.worker = icmp ult i64 %at, %workers
  %is.wanted = icmp ult i64 %helping, %helpers
  %is.both = and i1 %is.worker, %is.wanted
  br i1 %is.both, label %post, label %compute
post:
  %at.next = add i64 %at, 1
  %word = mul i64 %at.next, WORDS
  %slot = getelementptr i64, ptr %team, i64 %word
  atomicrmw add ptr %here, i64 1 seq_cst
  %exchanged = cmpxchg ptr %slot, i64 0, i64 %address seq_cst seq_cst
  %is.posted = extractvalue { i64, i1 } %exchanged, 1
  br i1 %is.posted, label %rouse, label %taken
taken:
  atomicrmw sub ptr %here, i64 1 seq_cst
  br label %look
rouse:
  %asleep = getelementptr i64, ptr %slot, i64 ASLEEP
  %slept = atomicrmw xchg ptr %asleep, i64 0 seq_cst
  %is.asleep = icmp ne i64 %slept, 0
  br i1 %is.asleep, label %wake, label %posted
wake:
  %lock.at = getelementptr i64, ptr %slot, i64 LOCK
  %lock = load ptr, ptr %lock.at
  call void @PyThread_release_lock(ptr %lock)
  br label %posted
posted:
  %helping.more = add i64 %helping, 1
  br label %look
compute:
  call void @participate(ptr %job)
  br label %withdraw
withdraw:
  %from = phi i64 [0, %compute], [%from.next, %left], [%from.next, %withdrawn]
  %is.posted.there = icmp ult i64 %from, %at
  br i1 %is.posted.there, label %try, label %finish
try:
  %from.next = add i64 %from, 1
  %word.from = mul i64 %from.next, WORDS
  %slot.from = getelementptr i64, ptr %team, i64 %word.from
  %taken.back = cmpxchg ptr %slot.from, i64 %address, i64 0 seq_cst seq_cst
  %is.withdrawn = extractvalue { i64, i1 } %taken.back, 1
  br i1 %is.withdrawn, label %withdrawn, label %left
withdrawn:
  atomicrmw sub ptr %here, i64 1 seq_cst
  br label %withdraw
left:
  br label %withdraw
finish:
  %spun = phi i64 [0, %withdraw], [%spun.more, %spin], [%spun, %nap]
  %still = load atomic i64, ptr %here seq_cst, align 8
  %is.over = icmp eq i64 %still, 0
  br i1 %is.over, label %over, label %wait
wait:
  %spun.more = add i64 %spun, 1
  %is.patient = icmp ult i64 %spun, PATIENCE
  br i1 %is.patient, label %spin, label %nap
spin:
  call void @pause()
  br label %finish
nap: ; a lock that nobody releases is a portable way to sleep, for so many microseconds
  call i32 @PyThread_acquire_lock_timed(ptr %held, i64 50, i32 0)
  br label %finish
over:
  %status = load i64, ptr %failed
  %result = trunc i64 %status to i32
  ret i32 %result
}
"""


# What tells a core that its thread is only waiting.
_PAUSES = {
    "x86_64": "declare void @llvm.x86.sse2.pause()\n"
              "define internal void @pause() {\n call void @llvm.x86.sse2.pause()\n ret void\n}",
    "aarch64": "declare void @llvm.aarch64.hint(i32)\n"
               "define internal void @pause() {\n call void @llvm.aarch64.hint(i32 1)\n ret void\n}",
}  # fmt: skip


def _source() -> str:
    architecture = llvm.get_process_triple().partition("-")[0].replace("arm64", "aarch64")
    words = {
        "PAUSE": _PAUSES.get(architecture, "define internal void @pause() {\n ret void\n}"),
        "ASLEEP": _ASLEEP, "LOCK": _LOCK, "SPINS": _SPINS, "WORKERS": _WORKERS, "HELD": _HELD, "WORDS": _WORDS,
        "PATIENCE": _SPIN,
    }  # fmt: skip
    return re.sub(r"\b[A-Z]+\b", lambda word: str(words.get(word[0], word[0])), _SOURCE)


#: The type of what runs a part of a job: of its arguments, its first task, the one past its last, the participant's
#: number; not 0 if it failed.
PART = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)

_address = 0
_workers = 0
_growing = threading.Lock()


@cache
def _native() -> tuple[Any, Any, int]:
    """Functions `serve` and `share`, and the address of the latter."""
    addresses = link(assemble("team", _source()), ("serve", "share"))
    number = ctypes.c_int64
    serve = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(addresses["serve"])
    share = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, number, PART, ctypes.c_void_p, number, number)
    return serve, share(addresses["share"]), addresses["share"]


def share(helpers: int, part: Any, tasks: int, chunks: int) -> None:
    """Run a job with at most so many helpers; `part`, a :data:`PART`, is called for ranges of tasks."""
    _native()[1](address(helpers), helpers, part, None, tasks, chunks)


def address(helpers: int) -> int:
    """Where native code finds a team of at least so many workers."""
    if _workers < helpers:
        _grow(min(helpers, _MOST))
    return _address


def _grow(workers: int) -> None:
    global _address, _workers
    serve, _, share = _native()
    with _growing:
        if _workers == 0:
            words = (ctypes.c_int64 * (_WORDS * (1 + _MOST)))()
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(words))  # workers read it while the interpreter goes
            words[SHARE], words[_HELD] = share, _held_lock()
            _address = ctypes.addressof(words)
        while _workers < workers:
            slot = (ctypes.c_int64 * _WORDS).from_address(_address + 8 * _WORDS * (1 + _workers))
            slot[_LOCK] = _held_lock()
            # Where threads outnumber cores, one that spins keeps another from its work.
            slot[_SPINS] = _SPIN if _workers + 1 < available_cores() else 0
            name = f"fastconv-{_workers}"
            threading.Thread(target=serve, args=(ctypes.addressof(slot),), name=name, daemon=True).start()
            _workers += 1
            ctypes.c_int64.from_address(_address + 8 * _WORKERS).value = _workers


def _held_lock() -> int:
    """One of Python's own locks, acquired."""
    allocate, acquire = ctypes.pythonapi.PyThread_allocate_lock, ctypes.pythonapi.PyThread_acquire_lock
    allocate.restype, acquire.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_int)
    lock = allocate()
    acquire(lock, 1)
    return int(lock)


def _after_fork_in_child() -> None:
    """A child has none of its parent's threads, and its locks may be held by nobody."""
    global _workers, _growing
    _workers, _growing = 0, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
