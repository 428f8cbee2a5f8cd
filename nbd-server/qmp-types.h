/* SPDX-License-Identifier: BSD-3-Clause */
/* qmp-types: what commands return. */
#ifndef MERINO_QMP_TYPES_H
#define MERINO_QMP_TYPES_H

#include "nbd-server/qmp.h"

extern const struct qmp_arg ret_version;	/* VersionInfo */
extern const struct qmp_arg ret_commands;	/* [CommandInfo] */
extern const struct qmp_arg ret_schema;		/* [SchemaInfo] */
extern const struct qmp_arg ret_named_nodes;	/* [BlockDeviceInfo] */
extern const struct qmp_arg ret_blocks;		/* [BlockInfo] */
extern const struct qmp_arg ret_exports;	/* [BlockExportInfo] */
extern const struct qmp_arg ret_stats;		/* [BlockStats] */
extern const struct qmp_arg ret_jobs;		/* [JobInfo] */
extern const struct qmp_arg ret_block_jobs;	/* [BlockJobInfo] */
extern const struct qmp_arg ret_sha256;		/* BlockDirtyBitmapSha256 */
extern const struct qmp_arg ret_add_fd;		/* AddfdInfo */
extern const struct qmp_arg ret_fdsets;		/* [FdsetInfo] */
extern const struct qmp_arg ret_status;		/* StatusInfo */
extern const struct qmp_arg ret_name;		/* NameInfo */
extern const struct qmp_arg ret_tpm;		/* [TPMInfo] */
extern const struct qmp_arg ret_iothreads;	/* [IOThreadInfo] */
extern const struct qmp_arg ret_qom_list;	/* [ObjectPropertyInfo] */
extern const struct qmp_arg ret_any;
extern const struct qmp_arg ret_checkpoint;	/* what checkpoint-begin has made */
extern const struct qmp_arg ret_checkpoints;	/* all checkpoints */

extern const char *const qmp_job_states[];	/* JobStatus */
extern const char *const qmp_job_types[];	/* JobType */

#endif
