/*
 * wire.c - a client's socket: recv() into frames, replies out by send()
 *
 * SPDX-License-Identifier: ISC
 *
 * Not libevent's bufferevent, which copies every message once more and makes three system calls of each that comes in.
 */
#include <config.h>

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <event2/event.h>

#include "agent/text.h"
#include "agent/wire.h"

#define INPUT_FIRST 16384 /* bytes of room for what comes in; doubled as far as a frame needs it */

struct wire {
	int fd;
	struct event *readable, *writable;
	struct timeval stall;
	struct wire_events events;
	void *arg;
	bool ended;

	char *input; /* NULL: nothing is there */
	size_t begin, scanned, used, size;
	size_t input_max;
	size_t frame_end; /* behind the NUL of the frame that wire_frame() found */

	struct text output;
	size_t sent;  /* of the output */
	bool blocked; /* until the socket takes more */
};

static void on_readable(evutil_socket_t fd, short what, void *arg)
{
	struct wire *wire = arg;

	(void)fd;
	(void)what;
	wire->events.readable(wire->arg);
}

/* Of room that came while the loop was held up itself, beyond the time allowed, libevent tells nothing but the time. */
static bool takes_more(int fd)
{
	struct pollfd socket = {.fd = fd, .events = POLLOUT};

	return poll(&socket, 1, 0) > 0;
}

static void on_writable(evutil_socket_t fd, short what, void *arg)
{
	struct wire *wire = arg;

	wire->blocked = false;
	if ((what & EV_TIMEOUT) != 0 && !takes_more(fd))
		wire->events.stalled(wire->arg);
	else
		wire->events.writable(wire->arg);
}

int wire_new(struct event_base *base, int fd, size_t input_max, unsigned stall_ms,
	     const struct wire_events *events, void *arg, struct wire **wire)
{
	struct wire *made = memory_new(1, sizeof(*made));

	made->fd = fd;
	made->input_max = input_max;
	made->stall.tv_sec = (time_t)(stall_ms / 1000);
	made->stall.tv_usec = (suseconds_t)(stall_ms % 1000) * 1000;
	made->events = *events;
	made->arg = arg;
	made->readable = event_new(base, fd, EV_READ | EV_PERSIST, on_readable, made);
	made->writable = event_new(base, fd, EV_WRITE, on_writable, made);
	if (made->readable == NULL || made->writable == NULL) {
		wire_free(made);
		return -ENOMEM;
	}
	*wire = made;
	return 0;
}

void wire_free(struct wire *wire)
{
	if (wire == NULL)
		return;
	if (wire->readable != NULL)
		event_free(wire->readable);
	if (wire->writable != NULL)
		event_free(wire->writable);
	close(wire->fd);
	free(wire->input);
	free(wire->output.data);
	free(wire);
}

/* ---- in --------------------------------------------------------------------------------- */

void wire_listen(struct wire *wire, bool listen)
{
	if (listen && !wire->ended)
		event_add(wire->readable, NULL);
	else
		event_del(wire->readable);
}

/* False: as much as may be read ahead is here. */
static bool make_room(struct wire *wire)
{
	if (wire->used < wire->size)
		return true;
	if (wire->begin > 0) {
		memmove(wire->input, wire->input + wire->begin, wire->used - wire->begin);
		wire->used -= wire->begin;
		wire->scanned -= wire->begin;
		wire->begin = 0;
		return true;
	}
	if (wire->size >= wire->input_max)
		return false;
	wire->size = wire->size == 0                    ? INPUT_FIRST
		     : wire->size * 2 < wire->input_max ? wire->size * 2
							: wire->input_max;
	wire->input = memory_resize(wire->input, wire->size);
	return true;
}

int wire_receive(struct wire *wire)
{
	ssize_t n;

	if (wire->ended || !make_room(wire))
		return 0;
	n = recv(wire->fd, wire->input + wire->used, wire->size - wire->used, MSG_DONTWAIT);
	if (n > 0) {
		wire->used += (size_t)n;
		return 0;
	}
	if (n < 0 && errno != EAGAIN && errno != EINTR)
		return -errno;
	if (n == 0) {
		wire->ended = true;
		wire_listen(wire, false);
	}
	if (wire->used == 0)
		wire_forget(wire);
	return 0;
}

bool wire_ended(const struct wire *wire)
{
	return wire->ended;
}

bool wire_is_closed(const struct wire *wire)
{
	struct pollfd at_peer = {.fd = wire->fd};

	return poll(&at_peer, 1, 0) == 1 && (at_peer.revents & POLLHUP) != 0;
}

const char *wire_frame(struct wire *wire, size_t *size)
{
	const char *end = NULL;

	if (wire->scanned < wire->used)
		end = memchr(wire->input + wire->scanned, '\0', wire->used - wire->scanned);
	if (end == NULL) {
		wire->scanned = wire->used;
		return NULL;
	}
	wire->frame_end = (size_t)(end - wire->input) + 1;
	*size = wire->frame_end - 1 - wire->begin;
	return wire->input + wire->begin;
}

void wire_drop_frame(struct wire *wire)
{
	if (wire->frame_end <= wire->begin)
		return; /* forgotten meanwhile */
	wire->begin = wire->scanned = wire->frame_end;
	if (wire->begin == wire->used)
		wire_forget(wire);
}

size_t wire_unread(const struct wire *wire)
{
	return wire->used - wire->begin;
}

void wire_forget(struct wire *wire)
{
	free(wire->input);
	wire->input = NULL;
	wire->begin = wire->scanned = wire->used = wire->size = wire->frame_end = 0;
}

/* ---- out -------------------------------------------------------------------------------- */

void wire_send(struct wire *wire, const char *bytes, size_t size)
{
	text_append(&wire->output, bytes, size);
}

/* What has gone out does not pile up before a rest that never ends; only as much is moved as that frees. */
void wire_wait(struct wire *wire)
{
	struct text *output = &wire->output;

	if (wire->sent > 0 && wire->sent >= output->length / 2) {
		output->length -= wire->sent;
		memmove(output->data, output->data + wire->sent, output->length);
		wire->sent = 0;
	}
	wire->blocked = true;
	event_add(wire->writable, &wire->stall);
}

int wire_flush(struct wire *wire)
{
	struct text *output = &wire->output;

	while (!wire->blocked && wire->sent < output->length) {
		const ssize_t n = send(wire->fd, output->data + wire->sent,
				       output->length - wire->sent, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n >= 0) {
			wire->sent += (size_t)n;
		} else if (errno == EAGAIN) {
			wire_wait(wire);
		} else if (errno != EINTR) {
			return -errno;
		}
	}
	if (!wire->blocked) {
		free(output->data);
		*output = (struct text){0};
		wire->sent = 0;
	}
	return 0;
}

size_t wire_unsent(const struct wire *wire)
{
	return wire->output.length - wire->sent;
}

int wire_socket(const struct wire *wire)
{
	return wire->fd;
}

bool wire_is_blocked(const struct wire *wire)
{
	return wire->blocked;
}
