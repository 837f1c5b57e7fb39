/*
 * bare.h - what the called check is measured beside
 *
 * SPDX-License-Identifier: ISC
 */
#ifndef TESTS_BENCH_BARE_H
#define TESTS_BENCH_BARE_H

#include <stdbool.h>
#include <stdint.h>

__attribute__((visibility("default"))) bool bare_function(const uint64_t *word);

#endif /* TESTS_BENCH_BARE_H */
