/*
 * wire.h - the socket of one client: frames in, bytes out, without ever blocking
 *
 * SPDX-License-Identifier: ISC
 *
 * A message costs one recv() and one send(), and the event loop is told to wait for room only if the socket has none: with
 * many clients that wait for their answers, system calls are what the agent spends its time on. Buffers are there only
 * while there is something in them, so that ten thousand silent clients cost little. What the frames mean is up to
 * the session. All in the event loop's thread.
 */
#ifndef AGENT_WIRE_H
#define AGENT_WIRE_H

#include <stdbool.h>
#include <stddef.h>

struct event_base;
struct wire;

/* None of them may free the wire. */
struct wire_events {
	void (*readable)(void *arg); /* wire_receive() finds something, and be it the end */
	void (*writable)(void *arg); /* wire_flush() gets on */
	void (*stalled)(void *arg);  /* nothing could be sent for the time allowed */
};

/*
 * Takes over `fd`, which is non-blocking, also if it fails. No more than `input_max` bytes are read ahead. Returns 0 or
 * -errno. It does not read before wire_listen().
 */
int wire_new(struct event_base *base, int fd, size_t input_max, unsigned stall_ms,
	     const struct wire_events *events, void *arg, struct wire **wire);

/* Closes; what was not sent is lost. NULL is fine. */
void wire_free(struct wire *wire);

/* Whether `readable` is called; after the end of the input it is not. */
void wire_listen(struct wire *wire, bool listen);

/* Reads what is there, once. Returns 0, or -errno if the connection is lost. */
int wire_receive(struct wire *wire);

/* The peer sends no more. What it has sent may still be here. */
bool wire_ended(const struct wire *wire);

/* The peer has closed: it does not read either. */
bool wire_is_closed(const struct wire *wire);

/*
 * The first frame that is whole, in place and with its NUL, which `size` does not count; NULL: there is none. It stays
 * the first, and where it is, until it is dropped or more is received.
 */
const char *wire_frame(struct wire *wire, size_t *size);
void wire_drop_frame(struct wire *wire);

/* Bytes that are here and no frame has been made of, and an end to them. */
size_t wire_unread(const struct wire *wire);
void wire_forget(struct wire *wire);

/* To go out with the next wire_flush(). */
void wire_send(struct wire *wire, const char *bytes, size_t size);

/*
 * Sends as much as the socket takes; if that is not all, `writable` is called when it takes more. Returns 0, or -errno if the
 * connection is lost.
 */
int wire_flush(struct wire *wire);

/* Bytes that have not gone out. */
size_t wire_unsent(const struct wire *wire);

/* The socket takes no more for now: `writable` will be called. */
bool wire_is_blocked(const struct wire *wire);

/* For who sends by himself, when there is nothing unsent: the socket; and what wire_flush() does if it takes nothing. */
int wire_socket(const struct wire *wire);
void wire_wait(struct wire *wire);

#endif /* AGENT_WIRE_H */
