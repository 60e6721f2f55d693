/* Which rows of which sequences form the next forward pass.  Pure: arrays in, arrays out.
 *
 * A sequence is QUEUED (no session yet), PREFILL (has a session, part of its prompt still to pass) or DECODE (only its newest token is to
 * pass).  The rule, in this order:
 *   1. every DECODE gets its row; when there are more of them than rows, those that waited longest (ties: first come), so none starves;
 *   2. what is left of the rows, but beside a DECODE at most `chunk`, goes to PREFILL in order of arrival, each as many of its tokens as fit: a long
 *      prompt passes in chunks while others decode, and a small chunk bounds how long they wait for their next token;
 *   3. then QUEUED are admitted in order of arrival while a session is free and rows are left; nobody overtakes.
 * Decoding sequences end, so the prompts behind them wait a bounded time even when decoding takes all rows.
 */
#ifndef ENGINE_SCHEDULE_H
#define ENGINE_SCHEDULE_H

#include <stdint.h>

enum schedule_state { SCHEDULE_QUEUED, SCHEDULE_PREFILL, SCHEDULE_DECODE };

struct schedule_entry {
    enum schedule_state state;
    int pending;        /* tokens that are known and have not passed yet, >= 1; exactly 1 for a DECODE */
    uint64_t last_step; /* the step in which it last had rows */
};

struct schedule_limits {
    int rows;     /* of one step */
    int sessions; /* PREFILL and DECODE together */
    int chunk;    /* most rows of prompts in a step in which a sequence decodes; 0: what is left */
};

struct schedule_piece {
    int entry; /* index into the entries */
    int rows;  /* the next rows of its pending tokens, >= 1 */
};

/* Fills piece[] (room for n) from the entries in order of arrival; returns how many, 0 only when n is 0.  A piece of a QUEUED
 * entry admits it. */
int schedule_step(struct schedule_piece *piece, const struct schedule_entry *entry, int n, struct schedule_limits limits);

#endif
