/*
 * loop_fd.c - an epoll(7) instance with a timer in it
 *
 * SPDX-License-Identifier: ISC
 */
#include "config.h"

#include "libcbshm/loop_fd.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

static int set(const struct loop_fd *loop, int operation, int fd, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.fd = fd};

	return epoll_ctl(loop->epoll_fd, operation, fd, &event);
}

/* Only true if both are what they were when they were registered. */
static bool is_ours(const struct loop_fd *loop)
{
	return loop->epoll_fd >= 0 && set(loop, EPOLL_CTL_MOD, loop->timer_fd, EPOLLIN) == 0;
}

int loop_fd_open(struct loop_fd *loop)
{
	loop->watched = -1;
	loop->events = 0;
	loop->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (loop->timer_fd < 0)
		return -1;
	loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (loop->epoll_fd >= 0 && set(loop, EPOLL_CTL_ADD, loop->timer_fd, EPOLLIN) == 0)
		return 0;

	const int saved_errno = errno;

	if (loop->epoll_fd >= 0)
		close(loop->epoll_fd);
	close(loop->timer_fd);
	loop->epoll_fd = loop->timer_fd = -1;
	errno = saved_errno;
	return -1;
}

void loop_fd_close(struct loop_fd *loop)
{
	if (is_ours(loop)) {
		close(loop->epoll_fd);
		close(loop->timer_fd);
	}
	loop->epoll_fd = loop->timer_fd = loop->watched = -1;
}

void loop_fd_watch(struct loop_fd *loop, int fd, uint32_t events)
{
	if (loop->epoll_fd < 0 || (fd == loop->watched && events == loop->events))
		return;
	if (fd == loop->watched) {
		set(loop, EPOLL_CTL_MOD, fd, events);
	} else {
		if (loop->watched >= 0)
			set(loop, EPOLL_CTL_DEL, loop->watched, 0);
		if (fd >= 0)
			set(loop, EPOLL_CTL_ADD, fd, events);
	}
	loop->watched = fd;
	loop->events = events;
}

bool loop_fd_wake(const struct loop_fd *loop, int64_t when)
{
	struct itimerspec at = {
		.it_value = {.tv_sec = when / 1000000, .tv_nsec = when % 1000000 * 1000}};

	return is_ours(loop) && timerfd_settime(loop->timer_fd, TFD_TIMER_ABSTIME, &at, NULL) == 0;
}
