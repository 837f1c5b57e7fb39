/*
 * notify.c - datagrams to the service manager
 *
 * SPDX-License-Identifier: ISC
 *
 * The protocol is stable and a datagram of text, which libsystemd's manual page itself suggests to send without
 * that library; it would be the agent's largest dependency.
 */
#include <config.h>

#include <errno.h>
#include <event2/event.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "agent/connection.h"
#include "agent/log.h"
#include "agent/notify.h"
#include "agent/text.h"

#define STATUS_SIZE 512

struct notify {
	int fd; /* -1: nobody to tell */
	struct event *feed;
};

static void say(const struct notify *notify, const char *message)
{
	if (notify->fd >= 0 &&
	    send(notify->fd, message, strlen(message), MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		log_event(LOG_LEVEL_DEBUG, "notify_failed", "error=%s", LOG_VALUE(strerror(errno)));
}

/* "/path", or "@name" in the abstract name space. -1: no such socket. */
static int connect_to(const char *name)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	const size_t length = strlen(name);
	int fd;

	if ((*name != '/' && *name != '@') || length < 2 || length >= sizeof(address.sun_path))
		return -1;
	memcpy(address.sun_path, name, length);
	if (*name == '@')
		address.sun_path[0] = '\0';
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -1;
	if (connect(fd, (struct sockaddr *)&address,
		    (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length)) == 0)
		return fd;
	close(fd);
	return -1;
}

static void on_feed(evutil_socket_t fd, short what, void *arg)
{
	(void)fd;
	(void)what;
	say(arg, "WATCHDOG=1");
}

/* Microseconds after which the manager's patience is over; 0: it is endless, or another process is meant. */
static uint64_t watchdog_patience(void)
{
	const char *patience = getenv("WATCHDOG_USEC"), *pid = getenv("WATCHDOG_PID");

	if (patience == NULL || (pid != NULL && strtoimax(pid, NULL, 10) != (intmax_t)getpid()))
		return 0;
	return strtoumax(patience, NULL, 10);
}

struct notify *notify_new(struct event_base *base)
{
	struct notify *notify = memory_new(1, sizeof(*notify));
	const char *name = getenv("NOTIFY_SOCKET");
	const uint64_t patience = watchdog_patience();
	struct timeval often = {.tv_sec = (time_t)(patience / 2 / 1000000),
				.tv_usec = (suseconds_t)(patience / 2 % 1000000)};

	notify->fd = name != NULL ? connect_to(name) : -1;
	if (name != NULL && notify->fd < 0)
		log_problem(LOG_LEVEL_WARNING, "notify_unavailable",
			    "the service manager is not told that the agent is ready: see that the "
			    "unit's sandbox leaves it the socket",
			    "socket=%s", LOG_VALUE(name));
	if (notify->fd >= 0 && patience > 1) {
		notify->feed = event_new(base, -1, EV_PERSIST, on_feed, notify);
		if (notify->feed == NULL || event_add(notify->feed, &often) != 0)
			abort();
	}
	unsetenv("NOTIFY_SOCKET");
	unsetenv("WATCHDOG_USEC");
	unsetenv("WATCHDOG_PID");
	return notify;
}

void notify_free(struct notify *notify)
{
	if (notify == NULL)
		return;
	if (notify->feed != NULL)
		event_free(notify->feed);
	if (notify->fd >= 0)
		close(notify->fd);
	free(notify);
}

void notify_ready(struct notify *notify)
{
	say(notify, "READY=1");
}

/* The manager takes a READY=1 that was sent before this moment for what it is. */
void notify_reloading(struct notify *notify)
{
	char message[64];

	snprintf(message, sizeof(message), "RELOADING=1\nMONOTONIC_USEC=%" PRId64,
		 clock_microseconds(CLOCK_MONOTONIC));
	say(notify, message);
}

void notify_stopping(struct notify *notify)
{
	say(notify, "STOPPING=1\nSTATUS=Stopping: answering what is under way");
}

void notify_status(struct notify *notify, const char *format, ...)
{
	char message[STATUS_SIZE] = "STATUS=";
	const size_t begin = strlen(message);
	va_list args;

	va_start(args, format);
	vsnprintf(message + begin, sizeof(message) - begin, format, args);
	va_end(args);
	/* Another line would be another assignment. */
	for (char *p = message + begin; *p != '\0'; p++) {
		if (*p == '\n')
			*p = ' ';
	}
	say(notify, message);
}
