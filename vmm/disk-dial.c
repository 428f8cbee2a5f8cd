/* SPDX-License-Identifier: BSD-3-Clause */
/* disk-dial: see disk-dial.h.
 *
 * The thread's result is the waiting side's, unless that gave up first: the lock decides.
 * Who comes last frees.
 */
#include "vmm/disk-dial.h"

#include <arpa/inet.h>
#include <errno.h>
#include <libnbd.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/uri.h"
#include "vmm/disk-int.h"

enum { LOOKUPS_MAX = 64, STACK = 256 << 10 };

struct dial {
	pthread_mutex_t lock;
	bool done, given_up;
	int fd;				/* eventfd */
	char *uri;
	struct dialled result;
};

static unsigned lookups;		/* threads; atomic */

/* Nothing is asked for that we do not use: a read of a virtual disk is data in one piece, and
 * a simple reply says it with fewer system calls.  What libnbd would check is checked by us. */
static int prepare(struct nbd_handle *h)
{
	return nbd_set_request_structured_replies(h, false) < 0 ||
	       nbd_set_strict_mode(h, 0) < 0 || nbd_set_pread_initialize(h, false) < 0 ||
	       nbd_set_uri_allow_local_file(h, true) < 0 ? -1 : 0;
}

static void connect_to(const char *uri, struct dialled *out)
{
	*out = (struct dialled){ .h = nbd_create() };
	if (out->h && !prepare(out->h) && nbd_aio_connect_uri(out->h, uri) == 0)
		return;
	snprintf(out->why, sizeof(out->why), "%s", nbd_get_error() ? nbd_get_error() : "libnbd fails");
	nbd_close(out->h);
	out->h = NULL;
}

bool dial_has_name(const struct uri *u)
{
	uint8_t address[16];

	return u->host && inet_pton(AF_INET, u->host, address) != 1 &&
	       inet_pton(AF_INET6, u->host, address) != 1;
}

static bool has_name(const char *text)
{
	struct error ignored = ERROR_INIT;
	struct uri u;
	bool name = uri_parse(text, &u, &ignored) == 0 && dial_has_name(&u);

	uri_clear(&u);
	return name;
}

static void dial_free(struct dial *d)
{
	if (!d)
		return;
	if (d->fd >= 0)
		close(d->fd);
	pthread_mutex_destroy(&d->lock);
	free(d->uri);
	free(d);
}

static void *look_up(void *arg)
{
	struct dial *d = arg;
	uint64_t one = 1;
	bool given_up;

	pthread_setname_np(pthread_self(), "lookup");
	connect_to(d->uri, &d->result);
	pthread_mutex_lock(&d->lock);
	d->done = true;
	given_up = d->given_up;
	while (!given_up && write(d->fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
	pthread_mutex_unlock(&d->lock);
	if (given_up) {
		nbd_close(d->result.h);
		dial_free(d);
	}
	__atomic_fetch_sub(&lookups, 1, __ATOMIC_SEQ_CST);
	return NULL;
}

static int start_thread(struct dial *d)
{
	sigset_t all, old;
	pthread_attr_t a;
	pthread_t t;
	int rc;

	pthread_attr_init(&a);
	pthread_attr_setstacksize(&a, STACK);
	pthread_attr_setdetachstate(&a, PTHREAD_CREATE_DETACHED);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	rc = pthread_create(&t, &a, look_up, d);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&a);
	return -rc;
}

static struct dial *dial_make(const char *uri)
{
	struct dial *d = calloc(1, sizeof(*d));

	if (!d)
		return NULL;
	pthread_mutex_init(&d->lock, NULL);
	d->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	d->uri = strdup(uri);
	if (d->fd >= 0 && d->uri)
		return d;
	dial_free(d);
	return NULL;
}

void dial_start(const char *uri, struct dialled *out)
{
	struct dial *d;

	if (!has_name(uri)) {
		connect_to(uri, out);
		return;
	}
	*out = (struct dialled){ .why = "no thread to look its name up" };
	if (__atomic_add_fetch(&lookups, 1, __ATOMIC_SEQ_CST) > LOOKUPS_MAX) {
		strcpy(out->why, "the resolver does not answer");
		__atomic_fetch_sub(&lookups, 1, __ATOMIC_SEQ_CST);
		return;
	}
	d = dial_make(uri);
	if (d && start_thread(d) == 0) {
		out->dial = d;
		return;
	}
	dial_free(d);
	__atomic_fetch_sub(&lookups, 1, __ATOMIC_SEQ_CST);
}

int dial_fd(const struct dial *d)
{
	return d->fd;
}

bool dial_take(struct dial *d, struct dialled *out)
{
	bool done;

	pthread_mutex_lock(&d->lock);
	done = d->done;
	pthread_mutex_unlock(&d->lock);
	if (!done)
		return false;
	*out = d->result;
	dial_free(d);
	return true;
}

void dial_give_up(struct dial *d)
{
	bool done;

	if (!d)
		return;
	pthread_mutex_lock(&d->lock);
	d->given_up = true;
	done = d->done;
	pthread_mutex_unlock(&d->lock);
	if (!done)
		return;			/* the thread frees it */
	nbd_close(d->result.h);
	dial_free(d);
}

bool dial_left_any(void)
{
	return __atomic_load_n(&lookups, __ATOMIC_SEQ_CST) > 0;
}
