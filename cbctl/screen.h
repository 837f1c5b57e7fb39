/*
 * screen.h - the terminal as a page that is drawn again and again
 *
 * SPDX-License-Identifier: ISC
 *
 * One page at a time, of the whole process. The terminal gets back what it showed before by screen_leave(), at
 * exit(3), and when a signal ends or stops the program.
 */
#ifndef CBCTL_SCREEN_H
#define CBCTL_SCREEN_H

#include <stdbool.h>

/* Whether standard output is a terminal that can be drawn on. */
bool screen_possible(void);

void screen_enter(void);
void screen_leave(void);

/*
 * Looks for keys and signals; sleeps through a ^Z. False: the person has had enough (q, ^C, or the
 * terminal is gone).
 */
bool screen_goes_on(void);

/* Whether the size has changed, or all is to be drawn again, since the last screen_begin(). */
bool screen_is_stale(void);

/* A page begins: says how much room there is. */
void screen_begin(int *rows, int *columns);

/* The next line of the page: texts that fit. What is beyond the last row is left out. */
void screen_line(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The page is complete: what is left of the one before disappears. */
void screen_end(void);

#endif /* CBCTL_SCREEN_H */
