/*
 * suggest.h - what was meant by a mistyped word
 *
 * SPDX-License-Identifier: ISC
 */
#ifndef CBCTL_SUGGEST_H
#define CBCTL_SUGGEST_H

#define SUGGESTION_SIZE 129 /* the longest name of a breaker, and a NUL */

struct suggestion {
	const char *word;           /* what was typed; must stay */
	char best[SUGGESTION_SIZE]; /* "" while nothing is near */
	int distance;
};

void suggestion_begin(struct suggestion *suggestion, const char *word);
void suggestion_consider(struct suggestion *suggestion, const char *candidate);

#endif /* CBCTL_SUGGEST_H */
