/*
 * watch_table.c - a look at the breakers as a table on the screen
 *
 * SPDX-License-Identifier: ISC
 *
 * What needs attention stands at the top: disabled breakers, the latest first; then those with failures; then the
 * others by name, as far as there is room.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>

#include "cbctl/output.h"
#include "cbctl/screen.h"
#include "cbctl/timespec.h"
#include "cbctl/watch.h"

#define LEFT_WIDTH     11 /* "23 h 59 min" */
#define FAILURES_WIDTH 8  /* "4 of 3" */
#define NAME_LEAST     8

/* ---- order ------------------------------------------------------------------------------ */

static int urgency(const struct cbshm_state *state)
{
	return state->disabled ? 2 : state->consecutive_failures > 0;
}

static int compare(const void *a, const void *b)
{
	const struct cbshm_state *x = *(const struct cbshm_state *const *)a;
	const struct cbshm_state *y = *(const struct cbshm_state *const *)b;

	if (urgency(x) != urgency(y))
		return urgency(y) - urgency(x);
	if (x->disabled && x->opened_at != y->opened_at)
		return x->opened_at < y->opened_at ? 1 : -1;
	return x < y ? -1 : x > y; /* the list is sorted by name */
}

/* To be freed; NULL: none, or out of memory. */
static const struct cbshm_state **in_order(const struct states *states)
{
	const struct cbshm_state **order = calloc(states->count + 1, sizeof(*order));

	if (order == NULL)
		return NULL;
	for (size_t i = 0; i < states->count; i++)
		order[i] = &states->list[i];
	qsort(order, states->count, sizeof(*order), compare);
	return order;
}

/* ---- lines ------------------------------------------------------------------------------ */

/* A text in so many columns, cut or filled up. */
static const char *cell(const char *text, int columns)
{
	const char *fitting = fitted(text, columns);

	return formatted("%s%*s", fitting, columns - width(fitting), "");
}

static const char *short_age(int64_t us)
{
	char text[64];

	if (us == CBSHM_NO_TIME)
		return "never";
	if (us < 1000000)
		return "0 s ago";
	duration_format(us, text, sizeof(text));
	return formatted("%s ago", text);
}

static void draw_head(const struct look *look, int columns)
{
	const char *advice = look->error == 0 ? condition_advice(&look->health) : NULL;
	const char *left;
	char time_text[64];
	int gap;

	time_format(look->now, time_text, sizeof(time_text));
	left = look->by_names
		       ? formatted("%zu of these %zu disabled", look->disabled, look->states.total)
		       : formatted("%zu of %zu breakers disabled", look->disabled,
				   look->states.total);
	gap = columns - width(left) - width(time_text);
	screen_line("%s%s",
		    coloured(look->disabled > 0 ? COLOUR_BAD : COLOUR_GOOD, fitted(left, columns)),
		    gap > 1 ? formatted("%*s%s", gap, "", time_text) : "");
	if (look->error != 0)
		screen_line("%s",
			    coloured(COLOUR_BAD, fitted(cbshm_strerror(look->error), columns)));
	else if (advice != NULL)
		screen_line("%s", coloured(COLOUR_BAD, fitted(advice, columns)));
	else
		screen_line("%s", fitted(formatted("Agent running (heartbeat %s), database "
						   "connected (confirmed %s)",
						   short_age(look->health.heartbeat_age_us),
						   short_age(look->health.database_age_us)),
					 columns));
	screen_line("%s", "");
}

static const char *failures(const struct cbshm_state *state)
{
	if (state->consecutive_failures == 0)
		return "";
	return formatted("%u of %u", state->consecutive_failures, state->policy.failure_threshold);
}

static const char *why(const struct cbshm_state *state)
{
	if (state->version == 0)
		return "does not exist, and so counts as enabled";
	if (!state->disabled)
		return state->row_disabled ? "its time is up" : "";
	return formatted("%s%s (%s)", clean(state->disabled_reason),
			 state->flags & CBSHM_STATE_REASON_CUT ? "..." : "",
			 clean(state->disabled_by));
}

static const char *word(const struct cbshm_state *state)
{
	if (state->version == 0)
		return coloured(COLOUR_DIM, "none    ");
	return state->disabled ? coloured(COLOUR_BAD, "disabled")
			       : coloured(COLOUR_GOOD, "enabled ");
}

static void draw_row(const struct cbshm_state *state, int name_columns, int columns)
{
	const char *rest = formatted("  %s  %s  %s  %s", cell(clean(state->name), name_columns),
				     cell(state->disabled ? state_left(state) : "", LEFT_WIDTH),
				     cell(failures(state), FAILURES_WIDTH), why(state));

	screen_line("%s%s", word(state), fitted(rest, columns - 8));
}

/* ---- the table -------------------------------------------------------------------------- */

/* As wide as the widest name that is shown, but no more than a third of the screen. */
static int name_width(const struct cbshm_state **order, size_t count, int columns)
{
	int widest = NAME_LEAST;

	for (size_t i = 0; i < count; i++) {
		const int w = width(clean(order[i]->name));

		widest = w > widest ? w : widest;
	}
	return widest > columns / 3 && columns / 3 > NAME_LEAST ? columns / 3 : widest;
}

static void draw_rows(const struct look *look, const struct cbshm_state **order, int rows,
		      int columns)
{
	const size_t room = rows > 0 ? (size_t)rows : 0;
	const size_t shown =
		look->states.count <= room ? look->states.count : (room > 0 ? room - 1 : 0);
	const int name_columns = name_width(order, shown, columns);

	screen_line("%s", coloured(COLOUR_DIM, fitted(formatted("STATE     %s  %s  %s  REASON",
								cell("NAME", name_columns),
								cell("ENDS IN", LEFT_WIDTH),
								cell("FAILURES", FAILURES_WIDTH)),
						      columns)));
	for (size_t i = 0; i < shown; i++)
		draw_row(order[i], name_columns, columns);
	if (shown < look->states.count)
		screen_line("%s", coloured(COLOUR_DIM,
					   formatted("and %zu more", look->states.count - shown)));
}

void watch_draw(const struct look *look)
{
	const struct cbshm_state **order = in_order(&look->states);
	int rows, columns;

	screen_begin(&rows, &columns);
	draw_head(look, columns);
	if (look->states.count == 0 && look->error == 0)
		screen_line("%s",
			    "There is no breaker yet: the first report or disable makes one.");
	else if (order != NULL && look->states.count > 0)
		draw_rows(look, order, rows - 4, columns);
	screen_end();
	free(order);
}
