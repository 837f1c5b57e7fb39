/*
 * suggest.c - the nearest of some words
 *
 * SPDX-License-Identifier: ISC
 *
 * By Damerau-Levenshtein distance (a letter changed, missing, too many, or two swapped), counted in bytes; and
 * a word of which only the beginning was typed is near as well.
 */
#include "config.h"

#include "cbctl/suggest.h"

#include <stdio.h>
#include <string.h>

static int least(int a, int b)
{
	return a < b ? a : b;
}

/* Of two words shorter than SUGGESTION_SIZE. */
static int distance(const char *a, const char *b)
{
	int rows[3][SUGGESTION_SIZE];
	int *before = rows[0], *last = rows[1], *row = rows[2], *spare;
	const int length = (int)strlen(b);

	for (int j = 0; j <= length; j++)
		last[j] = j;
	for (int i = 1; a[i - 1] != '\0'; i++) {
		row[0] = i;
		for (int j = 1; j <= length; j++) {
			row[j] = least(least(last[j], row[j - 1]) + 1,
				       last[j - 1] + (a[i - 1] != b[j - 1]));
			if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
				row[j] = least(row[j], before[j - 2] + 1);
		}
		spare = before;
		before = last;
		last = row;
		row = spare;
	}
	return last[length];
}

void suggestion_begin(struct suggestion *suggestion, const char *word)
{
	const size_t length = strlen(word);

	suggestion->word = word;
	suggestion->best[0] = '\0';
	/* At most a third of the word may be wrong, and no more than three letters. */
	suggestion->distance = length < 3 ? 2 : least((int)(length + 2) / 3, 3) + 1;
}

void suggestion_consider(struct suggestion *suggestion, const char *candidate)
{
	const size_t length = strlen(suggestion->word);
	int d;

	if (length == 0 || length >= SUGGESTION_SIZE || strlen(candidate) >= SUGGESTION_SIZE)
		return;
	d = distance(suggestion->word, candidate);
	if (d >= (int)strlen(candidate))
		return;
	if (length >= 3 && strncmp(candidate, suggestion->word, length) == 0)
		d = least(d, 1);
	if (d >= suggestion->distance)
		return;
	suggestion->distance = d;
	snprintf(suggestion->best, sizeof(suggestion->best), "%s", candidate);
}
