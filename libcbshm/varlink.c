/*
 * varlink.c - connects to a Varlink server, and takes the stream apart into messages
 *
 * SPDX-License-Identifier: ISC
 *
 * Transport only: it knows that messages end with a NUL, but neither JSON nor io.cbshm, and decides
 * nothing about repeating. Sockets are non-blocking; who waits for them does so in poll().
 */
#include "config.h"

#include "libcbshm/varlink.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "libcbshm/error.h"

#define CONNECT_PAUSE_MS 5
#define RECEIVE_SIZE     4096
#define RECEIVE_KEPT     65536

int64_t varlink_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

int varlink_milliseconds_until(int64_t deadline)
{
	const int64_t left = deadline - varlink_now();

	return left > 0 ? (int)((left + 999) / 1000) : 0;
}

void varlink_pause(int milliseconds, int64_t deadline)
{
	const int left = varlink_milliseconds_until(deadline);

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

/* ---- the stream ------------------------------------------------------------------------- */

int varlink_open(struct varlink *stream, const char *path, const uid_t *trusted, int trusted_count,
		 int64_t deadline, struct cbshm_call *call)
{
	struct stat status;
	int fd;
	int error = varlink_connect(path, trusted, trusted_count, deadline, call, &fd);

	if (error != 0)
		return error;
	if (fstat(fd, &status) < 0) {
		error = call_fail(call, CBSHM_ERR_SYSTEM, "cannot look at a socket: errno %d",
				  errno);
		close(fd);
		return error;
	}
	memset(stream, 0, sizeof(*stream));
	stream->fd = fd;
	stream->device = status.st_dev;
	stream->inode = status.st_ino;
	return 0;
}

bool varlink_is_ours(const struct varlink *stream)
{
	struct stat status;

	return stream->fd >= 0 && fstat(stream->fd, &status) == 0 &&
	       status.st_dev == stream->device && status.st_ino == stream->inode;
}

void varlink_close(struct varlink *stream)
{
	const int saved_errno = errno;

	if (varlink_is_ours(stream))
		close(stream->fd);
	free(stream->text);
	memset(stream, 0, sizeof(*stream));
	stream->fd = -1;
	errno = saved_errno;
}

bool varlink_is_idle(const struct varlink *stream)
{
	char byte;
	ssize_t n;

	if (stream->used > 0 || !varlink_is_ours(stream))
		return false;
	n = recv(stream->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
	return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
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

static int not_ours(struct cbshm_call *call)
{
	return call_fail(call, CBSHM_ERR_AGENT_DOWN,
			 "the connection to the agent is gone: something in this process has "
			 "closed or replaced a descriptor that it did not open");
}

int varlink_send(struct varlink *stream, const char *text, size_t size, struct cbshm_call *call,
		 size_t *taken)
{
	*taken = 0;
	if (!varlink_is_ours(stream))
		return not_ours(call);
	while (*taken < size) {
		const ssize_t n =
			send(stream->fd, text + *taken, size - *taken, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n >= 0)
			*taken += (size_t)n;
		else if (errno == EAGAIN || errno == EWOULDBLOCK)
			return 0;
		else if (is_lost(errno))
			return connection_lost(call);
		else if (errno != EINTR)
			return call_fail(call, CBSHM_ERR_SYSTEM,
					 "cannot send to the agent: errno %d", errno);
	}
	return 0;
}

/* Room for more: what was taken goes first. */
static int make_room(struct varlink *stream, struct cbshm_call *call)
{
	size_t size;
	char *text;

	if (stream->begin > 0) {
		memmove(stream->text, stream->text + stream->begin, stream->used - stream->begin);
		stream->used -= stream->begin;
		stream->scanned -= stream->begin;
		stream->begin = 0;
	}
	if (stream->used < stream->size)
		return 0;
	if (stream->size >= VARLINK_REPLY_MAX)
		return call_fail(call, CBSHM_ERR_PROTOCOL,
				 "the reply is longer than %u bytes: is that really cbagent?",
				 VARLINK_REPLY_MAX);
	size = stream->size > 0 ? stream->size * 2 : RECEIVE_SIZE;
	text = realloc(stream->text, size);
	if (text == NULL)
		return call_fail_memory(call);
	stream->text = text;
	stream->size = size;
	return 0;
}

int varlink_receive(struct varlink *stream, struct cbshm_call *call)
{
	ssize_t n;
	int error;

	if (!varlink_is_ours(stream))
		return not_ours(call);
	error = make_room(stream, call);
	if (error != 0)
		return error;
	n = recv(stream->fd, stream->text + stream->used, stream->size - stream->used,
		 MSG_DONTWAIT);
	if (n == 0 || (n < 0 && is_lost(errno)))
		return connection_lost(call);
	if (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)
		return call_fail(call, CBSHM_ERR_SYSTEM, "cannot read from the agent: errno %d",
				 errno);
	if (n > 0)
		stream->used += (size_t)n;
	return 0;
}

const char *varlink_message(struct varlink *stream)
{
	char *end = NULL;

	if (stream->scanned < stream->used)
		end = memchr(stream->text + stream->scanned, '\0', stream->used - stream->scanned);
	if (end == NULL) {
		stream->scanned = stream->used;
		return NULL;
	}
	stream->end = (size_t)(end - stream->text) + 1;
	return stream->text + stream->begin;
}

/* A buffer that has grown for one long reply is not kept. */
void varlink_drop_message(struct varlink *stream)
{
	stream->begin = stream->scanned = stream->end;
	if (stream->begin < stream->used)
		return;
	stream->begin = stream->scanned = stream->used = 0;
	if (stream->size > RECEIVE_KEPT) {
		free(stream->text);
		stream->text = NULL;
		stream->size = 0;
	}
}

char *varlink_take_message(struct varlink *stream)
{
	char *text;

	if (stream->begin == 0 && stream->end == stream->used && stream->size > RECEIVE_KEPT) {
		text = stream->text; /* long, and alone */
		stream->text = NULL;
		stream->used = stream->size = stream->scanned = 0;
		return text;
	}
	text = strndup(stream->text + stream->begin, stream->end - stream->begin);
	varlink_drop_message(stream);
	return text;
}
