/*
 * screen.c - draws pages on a terminal
 *
 * SPDX-License-Identifier: ISC
 *
 * With the few control sequences that every terminal of today has (ECMA-48, and xterm's alternate screen); a page
 * is written over the one before, so that nothing flickers, in one write. Not a curses.
 */
#include "config.h"

#include "cbctl/screen.h"

#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#define ENTER      "\033[?1049h\033[?25l" /* alternate screen, no cursor */
#define LEAVE      "\033[?25h\033[?1049l"
#define TO_TOP     "\033[H"
#define REST_EMPTY "\033[K" /* of the line */
#define ALL_EMPTY  "\033[J" /* from here on */

static struct {
	bool entered;
	bool has_keys; /* standard input is the terminal, and `before` is how it was */
	struct termios before;
	int rows, columns, row;
} screen;

static volatile sig_atomic_t has_ended, has_stopped, is_stale;

static void note_signal(int number)
{
	if (number == SIGWINCH)
		is_stale = 1;
	else if (number == SIGTSTP)
		has_stopped = 1;
	else
		has_ended = 1;
}

bool screen_possible(void)
{
	const char *terminal = getenv("TERM");

	return isatty(STDOUT_FILENO) && terminal != NULL && terminal[0] != '\0' &&
	       strcmp(terminal, "dumb") != 0;
}

/* Keys arrive one by one and are not shown; ^C and ^Z stay signals. */
static void take_keys(void)
{
	struct termios quiet;

	screen.has_keys = isatty(STDIN_FILENO) && tcgetattr(STDIN_FILENO, &screen.before) == 0;
	if (!screen.has_keys)
		return;
	quiet = screen.before;
	quiet.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
	quiet.c_cc[VMIN] = 0;
	quiet.c_cc[VTIME] = 0;
	tcsetattr(STDIN_FILENO, TCSANOW, &quiet);
}

static void show(void)
{
	take_keys();
	fputs(ENTER, stdout);
	fflush(stdout);
	screen.entered = true;
	is_stale = 1;
}

void screen_enter(void)
{
	static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP, SIGWINCH};
	struct sigaction action = {.sa_handler = note_signal};

	for (size_t i = 0; i < sizeof(signals) / sizeof(*signals); i++)
		sigaction(signals[i], &action, NULL);
	setvbuf(stdout, NULL, _IOFBF, 1 << 16);
	atexit(screen_leave);
	show();
}

void screen_leave(void)
{
	if (!screen.entered)
		return;
	screen.entered = false;
	fputs(LEAVE, stdout);
	fflush(stdout);
	if (screen.has_keys)
		tcsetattr(STDIN_FILENO, TCSANOW, &screen.before);
}

static bool quit_was_typed(void)
{
	struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
	char keys[64];
	ssize_t length;

	if (!screen.has_keys || poll(&input, 1, 0) <= 0)
		return false;
	length = read(STDIN_FILENO, keys, sizeof(keys));
	/* Readable, but nothing there: the terminal has hung up. */
	return length == 0 || (length > 0 && memchr(keys, 'q', (size_t)length) != NULL);
}

bool screen_goes_on(void)
{
	if (has_stopped) {
		has_stopped = 0;
		screen_leave();
		raise(SIGSTOP);
		show();
	}
	return !has_ended && !quit_was_typed() && !ferror(stdout);
}

bool screen_is_stale(void)
{
	return is_stale;
}

void screen_begin(int *rows, int *columns)
{
	struct winsize size;

	is_stale = 0;
	screen.rows = 24;
	screen.columns = 80;
	if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_row > 0 && size.ws_col > 0) {
		screen.rows = size.ws_row;
		screen.columns = size.ws_col;
	}
	screen.row = 0;
	fputs(TO_TOP, stdout);
	*rows = screen.rows;
	/* On the last column some terminals have the cursor still on it, and erase that when told to erase the rest. */
	*columns = screen.columns - 1;
}

void screen_line(const char *format, ...)
{
	va_list args;

	if (screen.row == screen.rows)
		return;
	if (screen.row++ > 0)
		fputs("\n", stdout);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	fputs(REST_EMPTY, stdout);
}

void screen_end(void)
{
	fputs(ALL_EMPTY, stdout);
	fflush(stdout);
}
