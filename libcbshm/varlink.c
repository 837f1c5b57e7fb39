/*
 * varlink.c - connects to a Varlink server, sends a message, waits for the answer
 *
 * SPDX-License-Identifier: ISC
 *
 * Transport only: it knows that messages end with a NUL, but neither JSON nor io.cbshm, and decides
 * nothing about repeating. Sockets are non-blocking and every wait is a poll() against the deadline.
 */
#include "config.h"

#include "libcbshm/varlink.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "libcbshm/error.h"

#define CONNECT_PAUSE_MS 5

int64_t varlink_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

/* For poll(): rounded up, so that it does not spin through the last millisecond. */
static int milliseconds_until(int64_t deadline)
{
	const int64_t left = deadline - varlink_now();

	return left > 0 ? (int)((left + 999) / 1000) : 0;
}

void varlink_pause(int milliseconds, int64_t deadline)
{
	const int left = milliseconds_until(deadline);

	poll(NULL, 0, left < milliseconds ? left : milliseconds);
}

/* ---- connecting ------------------------------------------------------------------------- */

static int connect_failed(const char *path, int error, struct cbshm_call *call)
{
	const char *why = error == ENOENT ? "no such file" : "connection refused";

	switch (error) {
	case ENOENT:
	case ENOTDIR:
	case ECONNREFUSED:
		return call_fail(call, CBSHM_ERR_AGENT_DOWN,
				 "no agent answers at %s (%s): is cbagent running? "
				 "systemctl status cbagent",
				 path, error == ENOTDIR ? "no such directory" : why);
	case ENOTSOCK:
	case EPROTOTYPE:
		return call_fail(call, CBSHM_ERR_AGENT_DOWN,
				 "no agent answers at %s (not a stream socket): is that the path "
				 "in cbagent.conf?",
				 path);
	case EACCES:
	case EPERM:
		return call_fail(call, CBSHM_ERR_DENIED,
				 "this user may not connect to %s: it takes membership in the "
				 "socket's group, see ls -l %s",
				 path, path);
	default:
		errno = error;
		return call_fail(call, CBSHM_ERR_SYSTEM, "cannot connect to %s: errno %d", path,
				 error);
	}
}

/* A full backlog is the one thing that passes by waiting; poll() cannot wait for it. */
static int connect_until(int fd, const struct sockaddr_un *address, int64_t deadline,
			 struct cbshm_call *call)
{
	while (connect(fd, (const struct sockaddr *)address, sizeof(*address)) < 0) {
		if (errno != EAGAIN && errno != EINTR)
			return connect_failed(address->sun_path, errno, call);
		if (varlink_now() >= deadline)
			return call_fail(call, CBSHM_ERR_TIMEOUT,
					 "the agent at %s did not accept the connection in time; "
					 "nothing was sent",
					 address->sun_path);
		varlink_pause(CONNECT_PAUSE_MS, deadline);
	}
	return 0;
}

/* The kernel recorded who called listen(): a socket put there by somebody else is not believed. */
static int check_listener(int fd, const char *path, const uid_t *trusted, int trusted_count,
			  struct cbshm_call *call)
{
	struct ucred peer;
	socklen_t size = sizeof(peer);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0)
		return call_fail(call, CBSHM_ERR_SYSTEM, "cannot tell who listens at %s: errno %d",
				 path, errno);
	for (int i = 0; i < trusted_count; i++) {
		if (trusted[i] == peer.uid)
			return 0;
	}
	return call_fail(
		call, CBSHM_ERR_UNTRUSTED,
		"the server at %s runs as uid %u, which is neither this user, root nor the "
		"agent's user: if that is the agent, name its user in CBSHM_OWNER",
		path, (unsigned)peer.uid);
}

int varlink_connect(const char *path, const uid_t *trusted, int trusted_count, int64_t deadline,
		    struct cbshm_call *call, int *fd)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	const size_t length = strlen(path);
	int error;

	if (length == 0 || length >= sizeof(address.sun_path))
		return call_fail(call, CBSHM_ERR_INVALID,
				 "socket must be a path of 1 to %zu bytes; it has %zu",
				 sizeof(address.sun_path) - 1, length);
	memcpy(address.sun_path, path, length);
	*fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (*fd < 0)
		return call_fail(call, CBSHM_ERR_SYSTEM, "cannot make a socket: errno %d%s", errno,
				 errno == EMFILE ? " (too many open files)" : "");
	error = connect_until(*fd, &address, deadline, call);
	if (error == 0)
		error = check_listener(*fd, path, trusted, trusted_count, call);
	if (error != 0) {
		const int saved_errno = errno;

		close(*fd);
		errno = saved_errno;
		*fd = -1;
	}
	return error;
}

bool varlink_is_usable(int fd)
{
	char byte;
	ssize_t n = recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);

	return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
}

/* ---- talking ---------------------------------------------------------------------------- */

/* 0 when poll() has something to say about the socket, or an error. */
static int wait_for(int fd, short events, int64_t deadline, struct cbshm_call *call)
{
	struct pollfd poll_fd = {.fd = fd, .events = events};

	for (;;) {
		const int n = poll(&poll_fd, 1, milliseconds_until(deadline));

		if (n > 0)
			return 0;
		if (n == 0 && varlink_now() >= deadline)
			return call_fail(call, CBSHM_ERR_TIMEOUT,
					 "the agent did not answer in time: is it hanging? "
					 "systemctl status cbagent");
		if (n < 0 && errno != EINTR)
			return call_fail(call, CBSHM_ERR_SYSTEM, "poll: errno %d", errno);
	}
}

static bool is_lost(int error)
{
	return error == EPIPE || error == ECONNRESET || error == ENOTCONN;
}

static int connection_lost(struct cbshm_call *call)
{
	return call_fail(call, CBSHM_ERR_AGENT_DOWN,
			 "the agent closed the connection without an answer: has it been stopped? "
			 "systemctl status cbagent");
}

static int send_all(int fd, const char *text, size_t size, int64_t deadline,
		    struct cbshm_call *call, bool *sent)
{
	while (size > 0) {
		const ssize_t n = send(fd, text, size, MSG_NOSIGNAL);
		int error;

		if (n >= 0) {
			text += n;
			size -= (size_t)n;
			continue;
		}
		if (is_lost(errno))
			return connection_lost(call);
		if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)
			return call_fail(call, CBSHM_ERR_SYSTEM,
					 "cannot send to the agent: errno %d", errno);
		error = wait_for(fd, POLLOUT, deadline, call);
		if (error != 0)
			return error;
	}
	*sent = true;
	return 0;
}

struct buffer {
	char *text;
	size_t used, size;
};

static bool buffer_grow(struct buffer *buffer)
{
	const size_t size = buffer->size > 0 ? buffer->size * 2 : 4096;
	char *text = realloc(buffer->text, size);

	if (text == NULL)
		return false;
	buffer->text = text;
	buffer->size = size;
	return true;
}

/* One read into the buffer. *done: the reply is complete. */
static int receive_some(int fd, struct buffer *buffer, struct cbshm_call *call, bool *done)
{
	ssize_t n;
	char *end;

	if (buffer->used == buffer->size && buffer->size >= VARLINK_REPLY_MAX)
		return call_fail(call, CBSHM_ERR_PROTOCOL,
				 "the reply is longer than %u bytes: is that really cbagent?",
				 VARLINK_REPLY_MAX);
	if (buffer->used == buffer->size && !buffer_grow(buffer))
		return call_fail_memory(call);
	n = recv(fd, buffer->text + buffer->used, buffer->size - buffer->used, 0);
	if (n == 0 || (n < 0 && is_lost(errno)))
		return connection_lost(call);
	if (n < 0) {
		if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)
			return 0;
		return call_fail(call, CBSHM_ERR_SYSTEM, "cannot read from the agent: errno %d",
				 errno);
	}
	end = memchr(buffer->text + buffer->used, '\0', (size_t)n);
	buffer->used += (size_t)n;
	*done = end != NULL;
	if (*done && end + 1 != buffer->text + buffer->used)
		return call_fail(call, CBSHM_ERR_PROTOCOL,
				 "more came than the one reply: is that really cbagent?");
	return 0;
}

static int receive(int fd, int64_t deadline, struct cbshm_call *call, char **reply)
{
	struct buffer buffer = {NULL, 0, 0};
	bool done = false;
	int error = 0;

	while (error == 0 && !done) {
		error = wait_for(fd, POLLIN, deadline, call);
		if (error == 0)
			error = receive_some(fd, &buffer, call, &done);
	}
	if (error != 0) {
		free(buffer.text);
		return error;
	}
	*reply = buffer.text;
	return 0;
}

int varlink_exchange(int fd, const char *text, size_t size, int64_t deadline,
		     struct cbshm_call *call, bool *sent, char **reply)
{
	int error;

	*sent = false;
	*reply = NULL;
	error = send_all(fd, text, size, deadline, call, sent);
	if (error == 0)
		return receive(fd, deadline, call, reply);
	/* A server that turns a client away says why, closes, and makes the sending fail. */
	if (error == CBSHM_ERR_AGENT_DOWN) {
		struct cbshm_call ignored;

		if (receive(fd, deadline, &ignored, reply) == 0)
			return 0;
	}
	return error;
}
