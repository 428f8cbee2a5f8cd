/* SPDX-License-Identifier: BSD-3-Clause */
/* describe: prints the table of commands for `merinod --qmp-commands=pod`.
 *
 * The build makes the list in merinod-qmp(7) of it (doc/merinod-qmp.7.pod.in is
 * the rest of that page), so the page says what this program does.  Everything
 * here comes from the table; a member of an object is named with its path, as
 * in error texts: "addr.type", "actions[].data".
 */
#include "nbd-server/describe.h"

#include <string.h>

#include "nbd-server/qmp.h"

static const char *const type_names[] = {
	[QMP_STR] = "string",
	[QMP_BOOL] = "boolean",
	[QMP_INT] = "integer",
	[QMP_UINT] = "integer, not negative",
	[QMP_OBJECT] = "object",
	[QMP_ARRAY] = "array",
	[QMP_STR_OR_OBJECT] = "string or object",
	[QMP_STR_OBJECT_NULL] = "string, object or null",
	[QMP_NUMBER] = "number",
	[QMP_ANY] = "any value",
};

static void describe_type(FILE *f, const struct qmp_arg *a)
{
	fputs(type_names[a->type], f);
	if (a->type == QMP_ARRAY && a->item)
		fprintf(f, " of %s", type_names[a->item->type]);
	for (const char *const *v = a->values; v && *v; v++)
		fprintf(f, "%sC<%s>", v == a->values ? ": " : v[1] ? ", " : " or ", *v);
}

static void describe_args(FILE *f, const struct qmp_arg *args, const char *path)
{
	for (const struct qmp_arg *a = args; a && a->name; a++) {
		const struct qmp_arg *members = a->item ? a->item->members : a->members;
		char below[256];

		fprintf(f, "=item B<%s%s> (", path, a->name);
		describe_type(f, a);
		fprintf(f, "%s)\n\n%s\n\n", a->required ? "" : "; optional", a->help ? a->help : "");
		snprintf(below, sizeof(below), "%s%s%s.", path, a->name, a->item ? "[]" : "");
		describe_args(f, members, below);
	}
}

static void describe_command(FILE *f, const struct qmp_command *c)
{
	fprintf(f, "=head2 %s\n\n%s. Since %s.\n\n", c->name, c->help, c->since);
	if (c->args && c->args->name) {
		fputs("=over 4\n\n", f);
		describe_args(f, c->args, "");
		fputs("=back\n\n", f);
	} else {
		fputs("No arguments.\n\n", f);
	}
	if (c->open_args)
		fprintf(f, "Further arguments are the %s.\n\n",
			strcmp(c->name, "object-add") ? "driver's; see L<merinod(8)/DRIVERS>"
						      : "class's; see L<merinod(8)/OBJECTS>");
}

bool describe_commands(FILE *f, const char *format)
{
	if (strcmp(format, "pod"))
		return false;
	for (const struct qmp_command *c = qmp_commands; c->name; c++)
		describe_command(f, c);
	return true;
}
