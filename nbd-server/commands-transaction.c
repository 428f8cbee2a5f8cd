/* SPDX-License-Identifier: BSD-3-Clause */
/* commands-transaction: the bitmap commands, each a transaction of one action,
 * and transaction itself.  What they do is in verbs.c.
 */
#include "nbd-server/commands.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backup/job.h"
#include "nbd-server/transaction.h"

static int run_one(const char *verb, struct json_object *args, struct error *err)
{
	struct action a = { .verb = verb_find(verb), .data = args };

	return transaction_run(&a, 1, err);
}

COMMAND(command_bitmap_add)
{
	const char *name = qmp_str(args, "node");
	struct node *n = command_node_find(name);

	/* QEMU's words here differ from those of its other bitmap commands. */
	if (!n)
		return error_set(err, -ENOENT, "Cannot find device='%s' nor node-name='%s'",
				 name, name);
	command_node_unref(n);
	return run_one("block-dirty-bitmap-add", args, err);
}

COMMAND(command_bitmap_remove)
{
	return run_one("block-dirty-bitmap-remove", args, err);
}

COMMAND(command_bitmap_clear)
{
	return run_one("block-dirty-bitmap-clear", args, err);
}

COMMAND(command_bitmap_enable)
{
	return run_one("block-dirty-bitmap-enable", args, err);
}

COMMAND(command_bitmap_disable)
{
	return run_one("block-dirty-bitmap-disable", args, err);
}

COMMAND(command_bitmap_merge)
{
	return run_one("block-dirty-bitmap-merge", args, err);
}

/* {"data": the verb's arguments}: one for each verb, in their order. */
static struct qmp_arg (*data_of_verbs(size_t n))[2]
{
	struct qmp_arg (*v)[2] = calloc(n, sizeof(*v));

	for (size_t i = 0; v && i < n; i++) {
		v[i][0] = (struct qmp_arg){ "data", QMP_OBJECT, true };
		v[i][0].members = verbs[i].args;
	}
	return v;
}

const struct qmp_case *action_cases(void)
{
	static const struct qmp_case none = { NULL };
	static struct qmp_case *cases;
	struct qmp_arg (*data)[2];
	size_t n = 0;

	while (verbs[n].name)
		n++;
	if (cases)
		return cases;
	data = data_of_verbs(n);
	cases = data ? calloc(n + 1, sizeof(*cases)) : NULL;
	for (size_t i = 0; cases && i < n; i++)
		cases[i] = (struct qmp_case){ verbs[i].name, data[i] };
	if (!cases)
		free(data);
	return cases ? cases : &none;
}

/* "grouped" is about jobs. */
static int check_grouped(const struct action *v, size_t n, struct error *err)
{
	for (size_t i = 0; i < n; i++) {
		if (!v[i].verb->starts_job && !v[i].verb->changes_nothing)
			return error_set(err, -EINVAL, "Action '%s' does not support Transaction "
					 "property completion-mode = grouped", v[i].verb->name);
	}
	return 0;
}

static bool is_grouped(struct json_object *properties)
{
	const char *mode = properties ? qmp_str(properties, "completion-mode") : NULL;

	return mode && !strcmp(mode, "grouped");
}

/* The jobs of a transaction with completion-mode grouped end together. */
static int run_all(struct action *v, size_t n, bool grouped, struct error *err)
{
	struct job_group *group = grouped ? job_group_new() : NULL;
	int rc = 0;

	if (grouped && !group)
		return error_set(err, -ENOMEM, "Out of memory");
	for (size_t i = 0; i < n; i++)
		v[i].group = group;
	rc = transaction_run(v, (unsigned)n, err);
	job_group_unref(group);
	return rc;
}

COMMAND(command_transaction)
{
	struct json_object *properties = json_object_object_get(args, "properties");
	struct json_object *actions = json_object_object_get(args, "actions");
	size_t n = json_object_array_length(actions);
	struct action *v = calloc(n + 1, sizeof(*v));
	int rc = v ? 0 : error_set(err, -ENOMEM, "Out of memory");

	for (size_t i = 0; i < n && !rc; i++) {
		struct json_object *o = json_object_array_get_idx(actions, i);

		v[i].verb = verb_find(qmp_str(o, "type"));
		v[i].data = json_object_object_get(o, "data");
	}
	if (!rc && is_grouped(properties))
		rc = check_grouped(v, n, err);
	if (!rc)
		rc = run_all(v, n, is_grouped(properties), err);
	free(v);
	return rc;
}
