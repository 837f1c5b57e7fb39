/*
 * target.h - what a fuzz target gives to whoever runs it: libFuzzer, or standalone.c
 *
 * SPDX-License-Identifier: ISC
 */
#ifndef FUZZ_TARGET_H
#define FUZZ_TARGET_H

#include <stddef.h>
#include <stdint.h>

/* Returns 0; what it finds aborts. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Where its inputs are, in the source tree; libFuzzer is told. */
extern const char fuzz_corpus[];

#endif /* FUZZ_TARGET_H */
