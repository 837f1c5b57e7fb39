/*
 * notify.h - tells the service manager how the agent is, by the protocol of sd_notify(3)
 *
 * SPDX-License-Identifier: ISC
 *
 * Without a service manager that asked for it ($NOTIFY_SOCKET) every function does nothing. Nothing here waits or
 * fails: a message that cannot be sent is one that is not sent.
 */
#ifndef AGENT_NOTIFY_H
#define AGENT_NOTIFY_H

struct event_base;
struct notify;

/*
 * Takes the manager's variables out of the environment, and begins to feed its watchdog, if it has one, from the
 * event loop: a loop that does not turn does not feed it. Only the first call finds the variables.
 */
struct notify *notify_new(struct event_base *base);
void notify_free(struct notify *notify); /* NULL is fine */

/* Started, or done with a reload. */
void notify_ready(struct notify *notify);
void notify_reloading(struct notify *notify);
void notify_stopping(struct notify *notify);

/* One line for people: systemctl status shows it. What of it is too long is cut. */
void notify_status(struct notify *notify, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

#endif /* AGENT_NOTIFY_H */
