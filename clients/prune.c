// SPDX-License-Identifier: BSD-3-Clause
/* prune: the verb: what stays, what is merged, what is removed, what that gives back. */
#include "clients/prune.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "clients/prune-plan.h"
#include "clients/pull.h"
#include "common/checked.h"
#include "common/log.h"
#include "common/size.h"

enum { OPT_KEEP = CLI_LONG, OPT_SCHEDULE, OPT_DRY_RUN };
enum { KEEP_MAX = 1000000 };

static const struct cli_option table[] = {
	{ OPT_KEEP, "keep", "N", "keep the last N points" },
	{ OPT_SCHEDULE, "keep-schedule", "7d,4w,12m", "keep the last point of so many days, weeks, ..." },
	{ OPT_DRY_RUN, "dry-run", NULL, "only say what would be done" },
	VERB_ROW_LIMIT,
	VERB_ROW_PROGRESS,
	VERB_ROWS_LAST
};

struct command {
	struct prune prune;
	struct prune_rules rules;
	bool given, dry_run;
	const char *dir;
	uint64_t before, after;		/* bytes on storage */
};

static void help(void)
{
	printf("usage: merino prune --keep N [OPTIONS] DIR\n"
	       "       merino prune --keep-schedule 7d,4w,12m [OPTIONS] DIR\n"
	       "Removes restore points.  Those that stay take over what they need.\n\n");
	cli_help(stdout, table);
}

static enum verb_go take_schedule(struct command *c)
{
	struct error err = ERROR_INIT;
	uint64_t last = c->rules.last;

	if (prune_rules_parse(optarg, &c->rules, &err) < 0) {
		log_error("--keep-schedule: %s", err.text);
		return VERB_EXIT_BAD;
	}
	c->rules.last = last;
	c->given = true;
	return VERB_GO;
}

static enum verb_go take_keep(struct command *c)
{
	int64_t n = cli_number("keep", optarg, 1, KEEP_MAX);

	c->rules.last = n;
	c->given = true;
	return n < 0 ? VERB_EXIT_BAD : VERB_GO;
}

static enum verb_go parse(struct command *c, int argc, char **argv)
{
	struct cli cli;
	int id;

	cli_init(&cli, table);
	while ((id = cli_next(&cli, argc, argv)) != -1) {
		enum verb_go go = VERB_GO;

		if (id == OPT_KEEP)
			go = take_keep(c);
		else if (id == OPT_SCHEDULE)
			go = take_schedule(c);
		else if (id == OPT_DRY_RUN)
			c->dry_run = true;
		else
			go = verb_take(&c->prune.v, id, help);
		if (go != VERB_GO)
			return go;
	}
	if (argc - optind != 1 || !c->given) {
		log_error("give one repository, and --keep or --keep-schedule; see merino prune --help");
		return VERB_EXIT_BAD;
	}
	c->dir = argv[optind];
	return VERB_GO;
}

/* --- the plan */

/* Neither is told apart from the other by what they rest on: all of it stays. */
static void keep_below(struct prune *o, const struct repo_point *p)
{
	for (unsigned k = 0; k < p->n; k++) {
		const struct repo_disk *d = &p->disk[k];

		while (d && d->level == REPO_INCREMENTAL) {
			const struct repo_point *q = repo_point(&o->repo, d->parent);

			if (!q || !q->readable || q->sequence >= p->sequence)
				break;
			o->keep[q - o->repo.point] = true;
			d = repo_disk(q, d->name);
		}
	}
}

/* Good points are counted.  A damaged one is no backup: it counts for nothing, stays as long
 * as it is not older than all that stay, and is not merged, so what it rests on stays, too.
 * One without a manifest that can be read is never touched. */
static int plan(struct command *c, struct error *err)
{
	struct prune *o = &c->prune;
	unsigned n = o->repo.n, good = 0;
	int64_t *time = calloc(n + 1, sizeof(*time));
	bool *keep = calloc(n + 1, sizeof(*keep)), seen = false;

	o->keep = calloc(n + 1, sizeof(*o->keep));
	if (!time || !keep || !o->keep) {
		free(time);
		free(keep);
		return error_errno(err, -ENOMEM, "%s", c->dir);
	}
	for (unsigned i = 0; i < n; i++)
		if (o->repo.point[i].readable && o->repo.point[i].state == REPO_GOOD)
			time[good++] = o->repo.point[i].time;
	prune_plan(&c->rules, time, good, keep);
	good = 0;
	for (unsigned i = 0; i < n; i++) {
		const struct repo_point *p = &o->repo.point[i];
		bool is_good = p->readable && p->state == REPO_GOOD;

		o->keep[i] = is_good ? keep[good++] : !p->readable || seen;
		seen |= is_good && o->keep[i];
	}
	for (unsigned i = n; i-- > 0;)
		if (o->keep[i] && o->repo.point[i].readable && o->repo.point[i].state != REPO_GOOD)
			keep_below(o, &o->repo.point[i]);
	free(time);
	free(keep);
	return 0;
}

/* Bytes that will have to be looked at: all that the points that go have brought. */
static void count_total(struct prune *o)
{
	for (unsigned i = 0; i < o->repo.n; i++)
		for (unsigned k = 0; k < o->repo.point[i].n && !o->keep[i]; k++)
			o->total += o->repo.point[i].disk[k].data;
}

static uint64_t bytes_used(const struct repo *r)
{
	int fd = openat(r->dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;
	uint64_t sum = 0;
	struct stat st;

	while (d && (e = readdir(d)))
		if (fstatat(r->dir, e->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode))
			sum += st.st_blocks * 512ull;
	if (d)
		closedir(d);
	return sum;
}

/* --- the work */

static int work(struct prune *o, struct error *err)
{
	int rc = prune_settle(o, err);

	for (unsigned i = 0; i < o->repo.n && rc == 0; i++) {
		if (o->keep[i] && o->repo.point[i].readable && prune_rests(o, i))
			rc = prune_merge(o, i, err);
		if (rc == 0 && pull_signalled())
			rc = error_set(err, -EINTR, "stopped by a signal");
	}
	/* The last ones first: what is left is whole at any time. */
	for (unsigned i = o->repo.n; i-- > 0 && rc == 0;) {
		if (!o->keep[i])
			rc = repo_remove(&o->repo, &o->repo.point[i], err);
		if (rc == 0 && pull_signalled())
			rc = error_set(err, -EINTR, "stopped by a signal");
	}
	return rc;
}

/* --- the report */

static struct json_object *ids(const struct prune *o, bool keep, bool merged)
{
	struct json_object *list = json_object_new_array();

	for (unsigned i = 0; i < o->repo.n; i++)
		if (o->keep[i] == keep && (!merged || (o->repo.point[i].readable && prune_rests(o, i))))
			json_object_array_add(list, json_object_new_string(o->repo.point[i].id));
	return list;
}

/* Before the work: the lists that say what rests on what are not true afterwards. */
static struct json_object *intent(const struct command *c)
{
	struct json_object *j = json_object_new_object();

	verb_add_string(j, "repository", c->prune.repo.path);
	verb_add_bool(j, "dry-run", c->dry_run);
	json_object_object_add(j, "kept", ids(&c->prune, true, false));
	json_object_object_add(j, "removed", ids(&c->prune, false, false));
	json_object_object_add(j, "merged", ids(&c->prune, true, true));
	return j;
}

static void tell_list(struct json_object *j, const char *key, const char *word)
{
	struct json_object *list;

	json_object_object_get_ex(j, key, &list);
	for (size_t i = 0; i < json_object_array_length(list); i++)
		printf("%s %s\n", json_object_get_string(json_object_array_get_idx(list, i)), word);
}

static int tell(const struct command *c, struct json_object *j)
{
	uint64_t back = c->before > c->after ? c->before - c->after : 0;
	char text[SIZE_TEXT_MAX], copied[SIZE_TEXT_MAX];

	if (!c->dry_run) {
		verb_add_u64(j, "copied-bytes", c->prune.copied);
		json_object_object_add(j, "freed-bytes", json_object_new_int64((int64_t)(c->before - c->after)));
	}
	if (c->prune.v.json)
		return verb_print(j, VERB_OK);
	if (!c->prune.v.quiet) {
		tell_list(j, "removed", c->dry_run ? "would be removed" : "removed");
		tell_list(j, "merged", c->dry_run ? "would take over what it needs" : "took over what it needs");
		if (!c->dry_run)
			printf("%s: %s given back, %s copied\n", c->dir, size_format(text, sizeof(text), back),
			       size_format(copied, sizeof(copied), c->prune.copied));
	}
	json_object_put(j);
	return fflush(stdout) == 0 ? VERB_OK : VERB_TROUBLE;
}

static int prune(struct command *c, struct json_object **report, struct error *err)
{
	struct prune *o = &c->prune;
	int rc = repo_open(&o->repo, c->dir, c->dry_run ? REPO_READ : REPO_WRITE | REPO_MERGE, err);

	if (rc == 0)
		rc = plan(c, err);
	if (rc < 0)
		return rc;
	*report = intent(c);
	if (c->dry_run)
		return 0;
	count_total(o);
	c->before = bytes_used(&o->repo);
	o->limit.rate = o->v.limit;
	pull_signals_hold();
	progress_init(&o->p, o->v.progress, o->v.progress_fd);
	rc = work(o, err);
	progress_end(&o->p, rc == 0, o->total, o->copied);
	c->after = bytes_used(&o->repo);
	return rc;
}

int prune_main(int argc, char **argv)
{
	struct command c = { .prune.repo = { .dir = -1, .lock = -1, .in_use = -1 } };
	struct json_object *report = NULL;
	struct error err = ERROR_INIT;
	enum verb_go go = parse(&c, argc, argv);
	int rc, code = EXIT_FAILURE;

	if (go != VERB_GO)
		return go == VERB_EXIT_OK ? EXIT_SUCCESS : EXIT_FAILURE;
	rc = prune(&c, &report, &err);
	if (rc < 0) {
		log_error("%s", err.text);
		json_object_put(report);
	} else {
		code = tell(&c, report) == VERB_OK ? EXIT_SUCCESS : EXIT_FAILURE;
	}
	free(c.prune.keep);
	repo_close(&c.prune.repo);
	if (rc < 0)
		verb_die_of_signal();
	return code;
}
