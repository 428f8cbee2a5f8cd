/* SPDX-License-Identifier: BSD-3-Clause */
/* notify: tells the service manager how we are (sd_notify(3)), where there is one. */
#ifndef MERINO_NOTIFY_H
#define MERINO_NOTIFY_H

/* Main loop.  READY=1, and from then on WATCHDOG=1 in time, as long as every loop
 * turns, if the manager asked for it (WATCHDOG_USEC). */
void notify_ready(void);
/* STOPPING=1: the end has begun. */
void notify_stopping(void);

#endif
