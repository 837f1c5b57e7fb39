/*
 * descriptor.c - asks the agent for a descriptor of the segment
 *
 * SPDX-License-Identifier: ISC
 *
 * The call is GetSegment of io.cbshm. What is sent is judged here as far as it is a message with one descriptor; the file
 * behind it is judged in attach.c, like one that was opened by its name.
 *
 * Two ways: who may wait asks on a connection of its own until the answer is there. A check may not: it sends the question,
 * keeps the connection in struct asking, and later checks look whether the answer has come.
 */
#include "config.h"

#include "libcbshm/descriptor.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "cbshm.h"
#include "libcbshm/attach.h"

#define WAIT_NS          INT64_C(1000000000)
#define CONNECT_PAUSE_MS 5
#define ANSWER_MAX       65536u
#define DESCRIPTORS_ROOM 8 /* more than one must be seen to be refused */

/* ---- the question ----------------------------------------------------------------------- */

int descriptors_init(struct descriptors *descriptors, const char *segment)
{
	static const char before[] =
		"{\"method\":\"io.cbshm.GetSegment\",\"parameters\":{\"name\":\"";
	static const char after[] = "\"}}";
	char *end;

	descriptors->asking.socket = -1;
	descriptors->error = CBSHM_ERR_NO_SEGMENT;
	descriptors->question = malloc(sizeof(before) + 2 * strlen(segment) + sizeof(after));
	if (!descriptors->question)
		return CBSHM_ERR_MEMORY;
	end = stpcpy(descriptors->question, before);
	/* A name with control characters, or that is no UTF-8, is malformed, and no agent has it. */
	for (; *segment; segment++) {
		if (*segment == '"' || *segment == '\\')
			*end++ = '\\';
		*end++ = *segment;
	}
	strcpy(end, after);
	return 0;
}

static int64_t coarse_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* ---- one connection --------------------------------------------------------------------- */

/* Closes what is still ours. */
static void asking_end(struct asking *asking)
{
	int fd = atomic_load_explicit(&asking->socket, memory_order_relaxed);
	int descriptor = asking->descriptor;
	struct stat status;

	if (fd < 0)
		return;
	/* First: the child of a fork() by another thread may find too much open, but never closes twice. */
	asking->descriptor = -1;
	atomic_store_explicit(&asking->socket, -1, memory_order_seq_cst);
	if (fstat(fd, &status) == 0 && status.st_dev == asking->device &&
	    status.st_ino == asking->inode)
		close(fd);
	if (descriptor >= 0)
		close(descriptor);
}

static int connect_error(int error)
{
	switch (error) {
	case EAGAIN: /* as many wait for the agent as may */
	case EINTR:
		return DESCRIPTOR_PENDING;
	case ENOENT:
	case ENOTDIR:
	case ECONNREFUSED:
	case ENOTSOCK:
	case EPROTOTYPE:
		return CBSHM_ERR_NO_SEGMENT;
	case EACCES:
	case EPERM:
		return CBSHM_ERR_DENIED;
	default:
		return CBSHM_ERR_SYSTEM;
	}
}

/* The kernel recorded who called listen(). */
static int check_server(const struct cbshm *client, int fd, uid_t *server)
{
	struct ucred peer;
	socklen_t size = sizeof(peer);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0)
		return CBSHM_ERR_SYSTEM;
	*server = peer.uid;
	return segment_trusts(client, peer.uid) ? 0 : CBSHM_ERR_UNTRUSTED;
}

/* The question fits into any socket's buffer. An agent that turns the client away at the door has its reply read all the same. */
static int put_question(const char *question, int fd)
{
	ssize_t sent;

	do {
		sent = send(fd, question, strlen(question) + 1, MSG_NOSIGNAL | MSG_DONTWAIT);
	} while (sent < 0 && errno == EINTR);
	return sent >= 0 || errno == EPIPE || errno == ECONNRESET ? 0 : CBSHM_ERR_SYSTEM;
}

/* Connects and asks. DESCRIPTOR_PENDING: the agent does not take the connection now. */
static int asking_begin(const struct cbshm *client, struct asking *asking)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct stat status;
	int error = 0;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return CBSHM_ERR_SYSTEM;
	strcpy(address.sun_path, client->socket); /* its length was checked */
	if (connect(fd, (const struct sockaddr *)&address, sizeof(address)) < 0)
		error = connect_error(errno);
	if (!error)
		error = check_server(client, fd, &asking->server);
	if (!error)
		error = put_question(client->reader->descriptors.question, fd);
	if (!error && fstat(fd, &status) < 0)
		error = CBSHM_ERR_SYSTEM;
	if (error) {
		int saved = errno;

		close(fd);
		errno = saved;
		return error;
	}
	asking->device = status.st_dev;
	asking->inode = status.st_ino;
	asking->process = getpid();
	asking->deadline = coarse_now() + WAIT_NS;
	asking->size = 0;
	asking->descriptor = -1;
	asking->too_many = false;
	/* Last: the child of a fork() by another thread finds all of it, or nothing. */
	atomic_store_explicit(&asking->socket, fd, memory_order_release);
	return 0;
}

static void take_descriptors(struct msghdr *message, struct asking *asking)
{
	for (struct cmsghdr *part = CMSG_FIRSTHDR(message); part;
	     part = CMSG_NXTHDR(message, part)) {
		if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
			continue;
		size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < count; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(part) + i * sizeof(fd), sizeof(fd));
			if (asking->descriptor < 0) {
				asking->descriptor = fd;
			} else {
				asking->too_many = true;
				close(fd);
			}
		}
	}
	if (message->msg_flags & MSG_CTRUNC)
		asking->too_many = true;
}

static bool begins_with(const struct asking *asking, const char *text)
{
	size_t length = strlen(text);

	return asking->size >= length && memcmp(asking->answer, text, length) == 0;
}

/* No parser of JSON: the agent writes its errors in one way only, and what is no error has come with a descriptor. */
static int judge(struct asking *asking, bool at_end)
{
	if (begins_with(asking, "{\"error\":\"io.cbshm.PermissionDenied\""))
		return CBSHM_ERR_DENIED;
	if (begins_with(asking, "{\"error\":\"io.cbshm.LimitExceeded\""))
		return CBSHM_ERR_REFUSED;
	if (begins_with(asking, "{\"error\":\"")) /* another segment's agent, or an older one */
		return CBSHM_ERR_NO_SEGMENT;
	if (!at_end || asking->too_many || asking->descriptor < 0 ||
	    !begins_with(asking, "{\"parameters\":{"))
		return CBSHM_ERR_PROTOCOL;
	int flags = fcntl(asking->descriptor, F_GETFL);
	if (flags < 0)
		return CBSHM_ERR_SYSTEM;
	return (flags & (O_ACCMODE | O_PATH)) == O_RDONLY ? 0 : CBSHM_ERR_UNTRUSTED;
}

/* What has come. DESCRIPTOR_PENDING: not yet all of it. */
static int asking_receive(struct asking *asking)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(DESCRIPTORS_ROOM * sizeof(int))];
	} control;
	char bytes[512];

	for (;;) {
		struct iovec part = {bytes, sizeof(bytes)};
		struct msghdr message = {.msg_iov = &part,
					 .msg_iovlen = 1,
					 .msg_control = &control,
					 .msg_controllen = sizeof(control)};
		ssize_t got = recvmsg(asking->socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			return DESCRIPTOR_PENDING;
		if (got < 0 && errno != ECONNRESET)
			return CBSHM_ERR_SYSTEM;
		if (got <= 0)
			return CBSHM_ERR_NO_SEGMENT; /* it went away without an answer */
		take_descriptors(&message, asking);
		for (ssize_t i = 0; i < got && asking->size + (size_t)i < sizeof(asking->answer);
		     i++)
			asking->answer[asking->size + (size_t)i] = bytes[i];
		asking->size += (uint32_t)got;
		const char *end = memchr(bytes, '\0', (size_t)got);
		if (end || asking->size > ANSWER_MAX)
			return judge(asking, end == bytes + got - 1);
	}
}

/* Takes the descriptor out, if the answer is one. */
static int asking_finish(struct asking *asking, int error, int *descriptor, uid_t *server)
{
	int saved = errno;

	if (!error) {
		*descriptor = asking->descriptor;
		*server = asking->server;
		asking->descriptor = -1;
	}
	asking_end(asking);
	errno = saved;
	return error;
}

/* ---- the two ways ----------------------------------------------------------------------- */

static int ask_and_wait(const struct cbshm *client, int *descriptor, uid_t *server)
{
	struct asking asking = {.socket = -1};
	int64_t end = coarse_now() + WAIT_NS;
	int error = asking_begin(client, &asking);

	while (error == DESCRIPTOR_PENDING && coarse_now() < end) {
		poll(NULL, 0, CONNECT_PAUSE_MS);
		error = asking_begin(client, &asking);
	}
	if (error)
		return error == DESCRIPTOR_PENDING ? CBSHM_ERR_TIMEOUT : error;
	do {
		struct pollfd socket = {.fd = asking.socket, .events = POLLIN};
		int64_t left = end - coarse_now();

		if (left <= 0) {
			error = CBSHM_ERR_TIMEOUT;
			break;
		}
		poll(&socket, 1, (int)(left / 1000000) + 1);
		error = asking_receive(&asking);
	} while (error == DESCRIPTOR_PENDING);
	return asking_finish(&asking, error, descriptor, server);
}

/* The socket of this process, still open under its number? */
static bool asking_is_ours(const struct asking *asking)
{
	struct stat status;

	return asking->process == getpid() && fstat(asking->socket, &status) == 0 &&
	       status.st_dev == asking->device && status.st_ino == asking->inode;
}

static int look_for_answer(struct asking *asking, int *descriptor, uid_t *server)
{
	int error = asking_receive(asking);

	if (error == DESCRIPTOR_PENDING && coarse_now() < asking->deadline)
		return DESCRIPTOR_PENDING;
	return asking_finish(asking, error == DESCRIPTOR_PENDING ? CBSHM_ERR_TIMEOUT : error,
			     descriptor, server);
}

/* With the try-flag. */
static int ask_without_waiting(struct cbshm *client, int *descriptor, uid_t *server)
{
	struct descriptors *descriptors = &client->reader->descriptors;
	struct asking *asking = &descriptors->asking;
	int error;

	if (asking->socket >= 0 && !asking_is_ours(asking))
		asking_end(asking);
	if (asking->socket >= 0)
		return look_for_answer(asking, descriptor, server);
	error = asking_begin(client, asking);
	return error ? error : DESCRIPTOR_PENDING;
}

static bool is_left_alone(const struct descriptors *descriptors)
{
	return coarse_now() < atomic_load_explicit(&descriptors->not_before, memory_order_relaxed);
}

static int last_error(const struct descriptors *descriptors)
{
	errno = atomic_load_explicit(&descriptors->system_error, memory_order_relaxed);
	return atomic_load_explicit(&descriptors->error, memory_order_relaxed);
}

/* An agent that did not answer is left alone for a moment, by those who would wait too. */
static int remember(struct descriptors *descriptors, int error)
{
	int64_t pause = error < 0 ? WAIT_NS : 0;

	if (error == DESCRIPTOR_PENDING)
		return error;
	atomic_store_explicit(&descriptors->system_error, errno, memory_order_relaxed);
	atomic_store_explicit(&descriptors->error, error, memory_order_relaxed);
	atomic_store_explicit(&descriptors->not_before, coarse_now() + pause, memory_order_relaxed);
	return error;
}

int descriptor_ask(struct cbshm *client, bool may_wait, int *descriptor, uid_t *server)
{
	struct descriptors *descriptors = &client->reader->descriptors;
	int last = atomic_load_explicit(&descriptors->error, memory_order_relaxed);
	int error;

	if (may_wait && !(last == CBSHM_ERR_TIMEOUT && is_left_alone(descriptors)))
		return remember(descriptors, ask_and_wait(client, descriptor, server));
	if (is_left_alone(descriptors))
		return last_error(descriptors);
	if (!try_enter(&descriptors->entered))
		return DESCRIPTOR_PENDING;
	error = remember(descriptors, ask_without_waiting(client, descriptor, server));
	try_leave(&descriptors->entered);
	return error;
}

void descriptors_close(struct descriptors *descriptors)
{
	asking_end(&descriptors->asking);
	free(descriptors->question);
}
