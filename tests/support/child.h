/*
 * child.h - children that die with their parent
 *
 * SPDX-License-Identifier: ISC
 */
#ifndef TESTS_SUPPORT_CHILD_H
#define TESTS_SUPPORT_CHILD_H

#include <signal.h>
#include <sys/prctl.h>
#include <sys/types.h>
#include <unistd.h>

/*
 * fork(), but if the calling thread ends, however it ends, so does the child: who interrupts a test leaves nothing behind that
 * reads on for ever. A child that becomes another user loses this.
 */
static inline pid_t child_fork(void)
{
	const pid_t parent = getpid();
	const pid_t child = fork();

	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(1);
	}
	return child;
}

#endif /* TESTS_SUPPORT_CHILD_H */
