/*
 * loop_fd.h - one descriptor for an event loop: readable when a connection or a timer wants attention
 *
 * SPDX-License-Identifier: ISC
 *
 * An epoll(7) instance, so that the descriptor stays the same while connections come and go. One
 * that the application has closed or overwritten is noticed: the kernel changes a registration only
 * for the very files that were registered.
 */
#ifndef LIBCBSHM_LOOP_FD_H
#define LIBCBSHM_LOOP_FD_H

#include <stdbool.h>
#include <stdint.h>

struct loop_fd {
	int epoll_fd; /* -1: none */
	int timer_fd;
	int watched; /* a connection, or -1 */
	uint32_t events;
};

/* 0 or -1, errno says why. */
int loop_fd_open(struct loop_fd *loop);

/* Closes what is still ours. */
void loop_fd_close(struct loop_fd *loop);

/* Watches a connection for EPOLL* `events`, instead of the one before; -1: none, to be called before it is closed. */
void loop_fd_watch(struct loop_fd *loop, int fd, uint32_t events);

/*
 * Makes the descriptor readable at `when`, microseconds of CLOCK_MONOTONIC; 1: at once, 0: not any
 * more. false: the descriptors are not ours any more. Any thread.
 */
bool loop_fd_wake(const struct loop_fd *loop, int64_t when);

#endif /* LIBCBSHM_LOOP_FD_H */
