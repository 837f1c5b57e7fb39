/*
 * listener.c - binds the Unix socket without harming anybody, and lets clients in within limits
 *
 * SPDX-License-Identifier: ISC
 *
 * What a client says once it is in is session.c's business.
 */
#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <event2/event.h>

#include "agent/agent.h"
#include "agent/listener.h"
#include "agent/log.h"

#define BACKLOG          512
#define ACCEPTS_PER_TURN 64
#define FILES_ELSEWHERE  64 /* descriptors left for the database and the rest of the agent */
#define RETRY_SECONDS    1

#ifndef SO_PASSRIGHTS
#define SO_PASSRIGHTS 83
#endif

struct listener {
	struct listener_options options;
	struct sockaddr_un address;
	int fd;
	dev_t device; /* of the socket's name, to know it again */
	ino_t inode;
	int reserve; /* given up to turn away a client when no other descriptor is free */
	struct event *accept_event;
	struct event *retry_event; /* accepting is paused until it fires or a session ends */
	struct peer_names *names;
	struct session_host host;
	struct session **sessions; /* room for options.max_sessions */
	struct listener_counters counters;
	bool stopping;
	void (*stopped)(void *arg);
	void *stopped_arg;
};

static int fail(int error, char *message, size_t message_size, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

static int fail(int error, char *message, size_t message_size, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(message, message_size, format, args);
	va_end(args);
	return error;
}

/* ---- the socket's name ------------------------------------------------------------------ */

/* Whoever may write to the directory could put another socket in the place of ours. */
static int check_directory(const char *path, char *message, size_t size)
{
	char copy[sizeof(((struct sockaddr_un *)0)->sun_path)];
	const char *directory;
	struct stat st;

	directory = dirname(strcpy(copy, path));
	if (stat(directory, &st) < 0)
		return fail(-errno, message, size, "the socket's directory %s: %s; create it first",
			    directory, strerror(errno));
	if (!S_ISDIR(st.st_mode))
		return fail(-ENOTDIR, message, size, "%s is not a directory", directory);
	if (st.st_uid != 0 && st.st_uid != geteuid())
		return fail(-EPERM, message, size,
			    "the socket's directory %s belongs to uid %ju: it must belong to the "
			    "agent's user or root",
			    directory, (uintmax_t)st.st_uid);
	if ((st.st_mode & (S_IWGRP | S_IWOTH)) != 0 && (st.st_mode & S_ISVTX) == 0)
		return fail(-EPERM, message, size,
			    "others may write to the socket's directory %s: chmod go-w it",
			    directory);
	return 0;
}

/* 0: free, or a dead agent's of this user. */
static int check_name(const struct sockaddr_un *address, char *message, size_t size)
{
	const char *path = address->sun_path;
	struct stat st;
	int fd, error;

	if (lstat(path, &st) < 0)
		return errno == ENOENT
			       ? 0
			       : fail(-errno, message, size, "%s: %s", path, strerror(errno));
	if (!S_ISSOCK(st.st_mode))
		return fail(
			-EEXIST, message, size,
			"%s exists and is no socket: remove it, or choose another [socket] path",
			path);
	if (st.st_uid != geteuid())
		return fail(-EPERM, message, size,
			    "the socket %s belongs to uid %ju: remove it, or choose another "
			    "[socket] path",
			    path, (uintmax_t)st.st_uid);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return fail(-errno, message, size, "socket: %s", strerror(errno));
	error = connect(fd, (const struct sockaddr *)address, sizeof(*address)) < 0 ? errno : 0;
	close(fd);
	/* EAGAIN: its backlog is full, so it has an owner */
	if (error == 0 || error == EAGAIN)
		return fail(-EADDRINUSE, message, size, "another agent serves %s", path);
	if (error != ECONNREFUSED && error != ENOENT)
		return fail(-error, message, size, "%s: %s", path, strerror(error));
	return 0;
}

/* A name beside the final one: nobody can connect before mode and group are right. */
static int aside(const struct sockaddr_un *address, struct sockaddr_un *temporary)
{
	const int length = snprintf(temporary->sun_path, sizeof(temporary->sun_path), "%s.%ld",
				    address->sun_path, (long)getpid());

	temporary->sun_family = AF_UNIX;
	return length < (int)sizeof(temporary->sun_path) ? 0 : -ENAMETOOLONG;
}

static int dress(const struct listener *listener, const char *path)
{
	if (listener->options.group != (gid_t)-1 &&
	    lchown(path, (uid_t)-1, listener->options.group) < 0)
		return -errno;
	return chmod(path, listener->options.mode) < 0 ? -errno : 0;
}

/* Binds and listens under the temporary name, then moves it to the final one. */
static int bind_aside(struct listener *listener, const struct sockaddr_un *temporary)
{
	struct stat st;
	int r;

	/* The kernel makes the name with the mode of the descriptor, whatever the umask allows beyond. */
	if (fchmod(listener->fd, S_IRUSR | S_IWUSR) < 0)
		return -errno;
	if (unlink(temporary->sun_path) < 0 && errno != ENOENT)
		return -errno;
	if (bind(listener->fd, (const struct sockaddr *)temporary, sizeof(*temporary)) < 0)
		return -errno;
	r = dress(listener, temporary->sun_path);
	if (r == 0 && (listen(listener->fd, BACKLOG) < 0 || lstat(temporary->sun_path, &st) < 0 ||
		       rename(temporary->sun_path, listener->address.sun_path) < 0))
		r = -errno;
	if (r < 0) {
		unlink(temporary->sun_path);
		return r;
	}
	listener->device = st.st_dev;
	listener->inode = st.st_ino;
	return 0;
}

/*
 * No descriptors come in, to the sessions neither. Nobody here would take them, and the kernel closes them in the agent's
 * time: that of a socket with SO_LINGER and unsent bytes takes as long as its owner likes. Before Linux 6.16 it lets all through.
 */
static void take_no_descriptors(int fd)
{
	const int off = 0;

	if (setsockopt(fd, SOL_SOCKET, SO_PASSRIGHTS, &off, sizeof(off)) < 0)
		log_event(LOG_LEVEL_DEBUG, "descriptors_come_in", "errno=%d", errno);
}

static int open_socket(struct listener *listener, char *message, size_t size)
{
	const char *path = listener->options.path;
	struct sockaddr_un temporary;
	int r;

	listener->address.sun_family = AF_UNIX;
	if (*path != '/')
		return fail(-EINVAL, message, size, "[socket] path %s must begin with /", path);
	if (strlen(path) >= sizeof(listener->address.sun_path))
		return fail(-ENAMETOOLONG, message, size, "[socket] path %s is too long", path);
	listener->options.path = strcpy(listener->address.sun_path, path);
	if (aside(&listener->address, &temporary) < 0)
		return fail(-ENAMETOOLONG, message, size, "[socket] path %s is too long", path);
	r = check_directory(path, message, size);
	if (r == 0)
		r = check_name(&listener->address, message, size);
	if (r < 0)
		return r;
	listener->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (listener->fd < 0)
		return fail(-errno, message, size, "socket: %s", strerror(errno));
	take_no_descriptors(listener->fd);
	r = bind_aside(listener, &temporary);
	return r < 0 ? fail(r, message, size, "cannot bind the socket %s: %s", path, strerror(-r))
		     : 0;
}

static void remove_name(struct listener *listener)
{
	struct stat st;

	if (listener->inode != 0 && lstat(listener->address.sun_path, &st) == 0 &&
	    st.st_dev == listener->device && st.st_ino == listener->inode)
		unlink(listener->address.sun_path);
	listener->inode = 0;
}

/* ---- accepting -------------------------------------------------------------------------- */

static const struct {
	const char *name;
	const char *message; /* to the client */
	const char *hint;    /* to the operator */
} refusals[LISTENER_REFUSALS] = {
	[LISTENER_REFUSED_TOTAL] =
		{"total", "the agent has as many connections as it takes",
		 "find out who holds them: ss -xp; one connection a process is enough"},
	[LISTENER_REFUSED_PER_UID] =
		{"per_uid", "your user has as many connections as it may",
		 "find the program of that user that does not close them: ss -xp"},
	[LISTENER_REFUSED_FILES] = {"files", "the agent has no file descriptor left",
				    "raise LimitNOFILE= in the unit"},
	[LISTENER_REFUSED_PEER] = {"peer", "the agent cannot tell who you are",
				   "the machine is out of memory, or the client has gone already"},
};

/* Says why, as far as the socket takes it at once, and closes. */
static void refuse(struct listener *listener, int fd, enum listener_refusal why)
{
	struct fault fault;
	char *reply;

	listener->counters.refused[why]++;
	log_problem(LOG_LEVEL_WARNING, "client_refused", refusals[why].hint,
		    "reason=%s sessions=%u", refusals[why].name, listener->counters.sessions);
	fault_set(&fault, REPLY_LIMIT_EXCEEDED, NULL, "%s", refusals[why].message);
	reply = message_error(&fault);
	if (reply != NULL && send(fd, reply, strlen(reply) + 1, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		log_event(LOG_LEVEL_DEBUG, "client_left", "errno=%d", errno);
	free(reply);
	close(fd);
}

static unsigned sessions_of(const struct listener *listener, uid_t uid)
{
	unsigned count = 0;

	for (unsigned i = 0; i < listener->counters.sessions; i++)
		count += session_peer(listener->sessions[i])->uid == uid;
	return count;
}

static bool over_per_uid(const struct listener *listener, uid_t uid)
{
	return uid != 0 && uid != geteuid() &&
	       sessions_of(listener, uid) >= listener->options.max_per_uid;
}

static void admit(struct listener *listener, int fd)
{
	struct session *session;
	struct peer peer;
	enum access access;
	int r;

	if (listener->counters.sessions >= listener->options.max_sessions) {
		refuse(listener, fd, LISTENER_REFUSED_TOTAL);
		return;
	}
	r = peer_identify(fd, listener->options.group, listener->options.admin_group,
			  listener->names, &peer, &access);
	if (r < 0 || over_per_uid(listener, peer.uid)) {
		refuse(listener, fd, r < 0 ? LISTENER_REFUSED_PEER : LISTENER_REFUSED_PER_UID);
		return;
	}
	r = session_new(&listener->host, fd, listener->counters.accepted, &peer, access, &session);
	if (r < 0) {
		log_problem(LOG_LEVEL_ERROR, "session_failed",
			    "a client was turned away: give the agent more memory", "error=%s",
			    LOG_VALUE(strerror(-r)));
		return;
	}
	listener->counters.accepted++;
	listener->sessions[listener->counters.sessions++] = session;
}

static void pause_accepting(struct listener *listener)
{
	static const struct timeval retry = {RETRY_SECONDS, 0};

	event_del(listener->accept_event);
	event_add(listener->retry_event, &retry);
}

static void resume_accepting(struct listener *listener)
{
	event_del(listener->retry_event);
	if (listener->reserve < 0)
		listener->reserve = open("/dev/null", O_RDONLY | O_CLOEXEC);
	event_add(listener->accept_event, NULL);
}

/*
 * No descriptor is free: gives up the reserve for a moment, so that the client hears why and the
 * backlog shrinks; else the loop would spin on a socket that stays readable.
 */
static void accept_to_refuse(struct listener *listener)
{
	int fd;

	if (listener->reserve >= 0)
		close(listener->reserve);
	fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd >= 0)
		refuse(listener, fd, LISTENER_REFUSED_FILES);
	listener->reserve = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

static void on_accept(evutil_socket_t ignored, short what, void *arg)
{
	struct listener *listener = arg;

	(void)ignored;
	(void)what;
	for (int i = 0; i < ACCEPTS_PER_TURN; i++) {
		int fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (fd >= 0) {
			admit(listener, fd);
		} else if (errno == EMFILE || errno == ENFILE) {
			accept_to_refuse(listener);
			pause_accepting(listener);
			return;
		} else if (errno == EAGAIN || errno == EWOULDBLOCK) {
			return;
		} else if (errno != ECONNABORTED && errno != EINTR) {
			log_problem(LOG_LEVEL_ERROR, "accept_failed",
				    "no clients are taken for a moment; if this repeats, give the "
				    "machine more memory",
				    "error=%s", LOG_VALUE(strerror(errno)));
			pause_accepting(listener);
			return;
		}
	}
}

static void tell_stopped(struct listener *listener)
{
	void (*stopped)(void *arg) = listener->stopped;

	listener->stopped = NULL;
	if (stopped != NULL)
		stopped(listener->stopped_arg);
}

/* Accepting may go on, or all is over. */
static void on_retry(evutil_socket_t fd, short what, void *arg)
{
	struct listener *listener = arg;

	(void)fd;
	(void)what;
	if (listener->stopping)
		tell_stopped(listener);
	else
		resume_accepting(listener);
}

static void on_session_ended(void *arg, struct session *session)
{
	struct listener *listener = arg;
	unsigned *count = &listener->counters.sessions;

	for (unsigned i = 0; i < *count; i++) {
		if (listener->sessions[i] != session)
			continue;
		listener->sessions[i] = listener->sessions[--*count];
		break;
	}
	/* The session's descriptor is still open here; it is closed before the event is looked at. */
	if (listener->stopping ? *count == 0
			       : event_pending(listener->retry_event, EV_TIMEOUT, NULL))
		event_active(listener->retry_event, EV_TIMEOUT, 0);
}

/* ---- life ------------------------------------------------------------------------------- */

/*
 * Each session is a descriptor, and the database must stay reachable when clients have taken all they may: raises the
 * soft limit as far as is needed and allowed, else lowers max_sessions.
 */
static void fit_into_files(struct listener_options *options)
{
	const rlim_t wanted = (rlim_t)options->max_sessions + FILES_ELSEWHERE;
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur >= wanted)
		return;
	limit.rlim_cur = limit.rlim_max < wanted ? limit.rlim_max : wanted;
	if (setrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur >= wanted)
		return;
	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return;
	options->max_sessions = limit.rlim_cur > 2 * FILES_ELSEWHERE
					? (unsigned)(limit.rlim_cur - FILES_ELSEWHERE)
					: FILES_ELSEWHERE;
	log_problem(LOG_LEVEL_WARNING, "few_files",
		    "fewer clients than intended find room: raise LimitNOFILE= in the unit",
		    "limit=%ju max_sessions=%u", (uintmax_t)limit.rlim_cur, options->max_sessions);
}

static void take_options(struct listener *listener, const struct listener_options *options)
{
	listener->options = *options;
	if (listener->options.max_sessions == 0)
		listener->options.max_sessions = LISTENER_SESSIONS_DEFAULT;
	if (listener->options.max_per_uid == 0)
		listener->options.max_per_uid = LISTENER_PER_UID_DEFAULT;
	fit_into_files(&listener->options);
}

static int prepare(struct listener *listener, struct agent *agent)
{
	listener->host = (struct session_host){
		.event_base = agent->base,
		.writer = agent->writer,
		.segment = agent->segment,
		.subscriptions = agent->subscriptions,
		.counters = &listener->counters.calls,
		.ended = on_session_ended,
		.arg = listener,
	};
	listener->sessions = calloc(listener->options.max_sessions, sizeof(*listener->sessions));
	listener->retry_event = evtimer_new(agent->base, on_retry, listener);
	if (listener->sessions == NULL || listener->retry_event == NULL)
		return -ENOMEM;
	listener->reserve = open("/dev/null", O_RDONLY | O_CLOEXEC);
	if (listener->reserve < 0)
		return -errno;
	return peer_names_new(&listener->names);
}

static int begin(struct listener *listener, struct agent *agent)
{
	listener->accept_event =
		event_new(agent->base, listener->fd, EV_READ | EV_PERSIST, on_accept, listener);
	if (listener->accept_event == NULL || event_add(listener->accept_event, NULL) < 0)
		return -ENOMEM;
	return 0;
}

int listener_new(struct agent *agent, const struct listener_options *options,
		 struct listener **listener, char *message, size_t message_size)
{
	struct listener *made = calloc(1, sizeof(*made));
	int r;

	if (made == NULL)
		return fail(-ENOMEM, message, message_size, "out of memory");
	made->fd = -1;
	made->reserve = -1;
	take_options(made, options);
	r = prepare(made, agent);
	if (r < 0)
		fail(r, message, message_size, "the socket: %s", strerror(-r));
	else
		r = open_socket(made, message, message_size);
	if (r == 0) {
		r = begin(made, agent);
		if (r < 0)
			fail(r, message, message_size, "the socket: %s", strerror(-r));
	}
	if (r < 0) {
		listener_free(made);
		return r;
	}
	log_event(LOG_LEVEL_INFO, "listening", "socket=%s mode=%04o", LOG_VALUE(options->path),
		  (unsigned)options->mode);
	*listener = made;
	return 0;
}

void listener_stop(struct listener *listener, void (*stopped)(void *arg), void *arg)
{
	if (listener->stopping)
		return;
	listener->stopping = true;
	listener->stopped = stopped;
	listener->stopped_arg = arg;
	remove_name(listener);
	event_del(listener->retry_event);
	event_del(listener->accept_event);
	close(listener->fd);
	listener->fd = -1;
	for (unsigned i = 0; i < listener->counters.sessions; i++)
		session_stop(listener->sessions[i]);
	if (listener->counters.sessions == 0)
		event_active(listener->retry_event, EV_TIMEOUT, 0);
}

void listener_free(struct listener *listener)
{
	if (listener == NULL)
		return;
	for (unsigned i = 0; i < listener->counters.sessions; i++)
		session_free(listener->sessions[i]);
	free(listener->sessions);
	if (listener->accept_event != NULL)
		event_free(listener->accept_event);
	if (listener->retry_event != NULL)
		event_free(listener->retry_event);
	if (listener->fd >= 0) {
		remove_name(listener);
		close(listener->fd);
	}
	if (listener->reserve >= 0)
		close(listener->reserve);
	peer_names_free(listener->names);
	free(listener);
}

const struct listener_counters *listener_counters(const struct listener *listener)
{
	return &listener->counters;
}
