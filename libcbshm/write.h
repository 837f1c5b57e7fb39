/*
 * write.h - what of write.c is of use to other parts of the library
 *
 * SPDX-License-Identifier: ISC
 */
#ifndef LIBCBSHM_WRITE_H
#define LIBCBSHM_WRITE_H

#include "cbshm.h"

/*
 * Fills `disabled` and `remaining_us` of a state that came over the socket: by the database's clock
 * as this host knows it, its own, corrected by what the agent last measured.
 */
void state_apply_ttl(struct cbshm *client, struct cbshm_state *state);

#endif /* LIBCBSHM_WRITE_H */
