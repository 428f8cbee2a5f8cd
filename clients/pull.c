// SPDX-License-Identifier: BSD-3-Clause
/* pull: the verb: connect, open the output, copy, finish, tell.
 *
 * Exit status: 0 when OUT is complete and durable, else 1.  After a signal the
 * temporary file is removed and the process dies of that signal.
 */
#include "clients/pull.h"

#include <errno.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include "clients/pull-sink.h"
#include "clients/pull-source.h"
#include "common/log.h"
#include "common/size.h"

static volatile sig_atomic_t caught;

static void on_signal(int signo)
{
	caught = signo;
}

void pull_signals_hold(void)
{
	const int signals[] = { SIGINT, SIGTERM, SIGHUP };
	struct sigaction sa = { .sa_handler = on_signal }, old;
	sigset_t held;

	sigemptyset(&held);
	for (unsigned i = 0; i < sizeof(signals) / sizeof(*signals); i++) {
		if (sigaction(signals[i], NULL, &old) == 0 && old.sa_handler == SIG_IGN)
			continue;	/* nohup */
		sigaction(signals[i], &sa, NULL);
		sigaddset(&held, signals[i]);
	}
	sigprocmask(SIG_BLOCK, &held, NULL);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN);	/* a file too large is an error like any other */
}

int pull_signalled(void)
{
	struct timespec now = { 0 };
	sigset_t pending;

	sigemptyset(&pending);
	sigaddset(&pending, SIGINT);
	sigaddset(&pending, SIGTERM);
	sigaddset(&pending, SIGHUP);
	if (!caught) {
		int signo = sigtimedwait(&pending, NULL, &now);

		caught = signo > 0 ? signo : 0;
	}
	return caught;
}

/* Dies as if the signal had not been handled. */
void pull_die_of_signal(void)
{
	sigset_t set;

	signal(caught, SIG_DFL);
	sigemptyset(&set);
	sigaddset(&set, caught);
	raise(caught);
	sigprocmask(SIG_UNBLOCK, &set, NULL);
}

static void add_u64(struct json_object *o, const char *key, uint64_t v)
{
	json_object_object_add(o, key, json_object_new_uint64(v));
}

static void add_string(struct json_object *o, const char *key, const char *v)
{
	if (v)
		json_object_object_add(o, key, json_object_new_string(v));
}

static void tell_json(const struct pull_options *o, const struct pull_stats *st)
{
	struct json_object *j = json_object_new_object();

	add_string(j, "uri", o->uri);
	add_string(j, "output", o->out);
	add_string(j, "format", o->format == PULL_RAW ? "raw" : "qcow2");
	add_string(j, "bitmap", o->bitmap);
	add_string(j, "backing", o->backing);
	add_u64(j, "virtual-size", st->size);
	add_u64(j, "read-bytes", st->read);
	add_u64(j, "written-bytes", st->written);
	add_u64(j, "zero-bytes", st->zero + (st->read - st->written));
	add_u64(j, "skipped-bytes", st->skipped);
	add_u64(j, "requests", st->requests);
	add_u64(j, "connections", st->connections);
	json_object_object_add(j, "seconds", json_object_new_double(st->seconds));
	printf("%s\n", json_object_to_json_string_ext(j, JSON_C_TO_STRING_PRETTY |
						      JSON_C_TO_STRING_NOSLASHESCAPE));
	json_object_put(j);
}

static void tell_person(const struct pull_options *o, const struct pull_stats *st)
{
	char read[SIZE_TEXT_MAX], size[SIZE_TEXT_MAX], skipped[SIZE_TEXT_MAX], rate[SIZE_TEXT_MAX];

	size_format(read, sizeof(read), st->read);
	size_format(size, sizeof(size), st->size);
	size_format(skipped, sizeof(skipped), st->size - st->read - st->zero);
	size_format(rate, sizeof(rate), st->seconds > 0 ? st->read / st->seconds : 0);
	if (o->bitmap)
		printf("%s: %s of %s copied, %s unchanged, in %.1f s (%s/s)\n", o->out, read, size,
		       skipped, st->seconds, rate);
	else
		printf("%s: %s of %s copied in %.1f s (%s/s)\n", o->out, read, size, st->seconds, rate);
}

/* Everything that can fail. */
static int pull(const struct pull_options *o, struct pull_stats *st, struct error *err)
{
	struct progress p;
	struct source s;
	struct sink *k;
	int rc = sink_check(o, err);

	if (rc < 0)
		return rc;
	rc = source_open(&s, o->uri, o->bitmap, err);
	if (rc == 0)
		pull_signals_hold();
	k = rc == 0 ? sink_open(o, s.size, err) : NULL;
	progress_init(&p, k ? o->progress : PROGRESS_NONE, o->progress_fd);
	if (k) {
		rc = pull_copy(o, &s, k, st, &p, err);
		if (rc == 0)
			rc = sink_finish(k, err);
		progress_end(&p, rc == 0, st->size, st->read);
	} else if (rc == 0) {
		rc = err->code ? err->code : -EIO;
	}
	sink_close(k);
	source_close(&s);
	return rc;
}

int pull_main(int argc, char **argv)
{
	uint64_t start = progress_now();
	struct error err = ERROR_INIT;
	struct pull_stats st = { 0 };
	struct pull_options o;
	enum pull_go go = pull_parse(&o, argc, argv);

	if (go != PULL_GO)
		return go == PULL_EXIT_OK ? EXIT_SUCCESS : EXIT_FAILURE;
	if (pull(&o, &st, &err) < 0) {
		log_error("%s", err.text);
		if (o.onto && st.requests + st.zero)
			log_error("%s is now partly brought up to date: copy again with the same bitmap",
				  o.out);
		if (caught)
			pull_die_of_signal();
		return EXIT_FAILURE;
	}
	st.seconds = (progress_now() - start) / 1e9;
	if (o.json)
		tell_json(&o, &st);
	else if (!o.quiet)
		tell_person(&o, &st);
	return fflush(stdout) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
