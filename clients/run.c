// SPDX-License-Identifier: BSD-3-Clause
/* run: the verb: a directory, a merinod, a machine; then wait, and clean up.
 *
 * Exit status: 0 when the guest has powered off, or the machine was told to quit; 1 on any
 * error.  With --detach the caller has its answer when the machine runs.
 */
#include "clients/run.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "clients/own-daemon.h"
#include "clients/pull.h"
#include "common/log.h"

enum { OPT_MEMORY = CLI_LONG, OPT_CPUS, OPT_KERNEL, OPT_INITRD, OPT_APPEND, OPT_BIOS, OPT_NET, OPT_SOCKET, OPT_DETACH,
       OPT_PAUSED, NAP_NS = 20000000, END_S = 5, RESTART_S = 1 };

static const struct cli_option table[] = {
	{ 'n', "name", "NAME", "what to call it (default: after the first disk, or \"vm\")" },
	{ OPT_MEMORY, "memory", "SIZE", "its memory, as 2G (default 1G)" },
	{ OPT_CPUS, "cpus", "N", "its CPUs (default 1)" },
	{ 'd', "disk", "DISK", "a file or an NBD URI, and options; may be repeated" },
	{ OPT_KERNEL, "kernel", "FILE", "boot this kernel, not the first disk" },
	{ OPT_INITRD, "initrd", "FILE", "... with this initrd" },
	{ OPT_APPEND, "append", "TEXT", "... and this command line" },
	{ OPT_BIOS, "bios", "FILE", "the firmware that boots the first disk (default: SeaBIOS)" },
	{ OPT_NET, "net", "NET", "a network card, as merino-vmm(1) has it; may be repeated" },
	{ 'k', "socket", "PATH", "the control socket of the merinod that serves the URIs" },
	{ OPT_DETACH, "detach", NULL, "leave it running in the background" },
	{ OPT_PAUSED, "paused", NULL, "do not start its CPUs" },
	VM_ROWS_LAST
};

static void help(void)
{
	printf("usage: merino run [OPTIONS] [DISK ...]\n"
	       "Runs a virtual machine whose disks a merinod serves, until it powers off.\n\n");
	cli_help(stdout, table);
	printf("\nexamples:\n"
	       "  merino run debian.qcow2\n"
	       "  merino run --name vm1 --memory 2G --cpus 2 --detach --net user debian.qcow2\n");
}

/* -- options -------------------------------------------------------------------- */

enum go { GO, EXIT_OK, EXIT_BAD };

static enum go add_disk(struct run *r, const char *text)
{
	struct error err = ERROR_INIT;

	if (run_disk_parse(r, text, &err) == 0)
		return GO;
	log_error("%s", err.text);
	return EXIT_BAD;
}

static enum go take(struct run *r, int id)
{
	switch (id) {
	case 'n': r->name = optarg; return GO;
	case OPT_MEMORY: r->memory = optarg; return GO;
	case OPT_CPUS: r->cpus = optarg; return GO;
	case 'd': return add_disk(r, optarg);
	case OPT_KERNEL: r->kernel = optarg; return GO;
	case OPT_INITRD: r->initrd = optarg; return GO;
	case OPT_APPEND: r->append = optarg; return GO;
	case OPT_BIOS: r->bios = optarg; return GO;
	case OPT_NET:
		if (r->n_net == sizeof(r->net) / sizeof(*r->net)) {
			log_error("too many --net");
			return EXIT_BAD;
		}
		r->net[r->n_net++] = optarg;
		return GO;
	case 'k': r->socket = optarg; return GO;
	case OPT_DETACH: r->detach = true; return GO;
	case OPT_PAUSED: r->paused = true; return GO;
	case VM_RUN_DIR: r->base = optarg; return GO;
	case 'h': help(); return EXIT_OK;
	case 'V': cli_version(); return EXIT_OK;
	default: return EXIT_BAD;
	}
}

static enum go check(struct run *r)
{
	for (unsigned i = 0; i < r->n_disks; i++) {
		if (r->socket && !r->disk[i].uri) {
			log_error("%s: with --socket all disks are NBD URIs of that merinod", r->disk[i].what);
			return EXIT_BAD;
		}
	}
	if (!r->n_disks && !r->kernel) {
		log_error("nothing to run: say a DISK or --kernel; see merino run --help");
		return EXIT_BAD;
	}
	return GO;
}

static enum go parse(struct run *r, int argc, char **argv)
{
	enum go go = GO;
	struct cli cli;
	int id;

	cli_init(&cli, table);
	while (go == GO && (id = cli_next(&cli, argc, argv)) != -1)
		go = take(r, id);
	for (int i = optind; i < argc && go == GO; i++)
		go = add_disk(r, argv[i]);
	return go == GO ? check(r) : go;
}

/* "debian-12" of "/srv/debian-12.qcow2". */
static void default_name(const struct run *r, char out[65])
{
	const char *file = r->n_disks && !r->disk[0].uri ? strrchr(r->disk[0].what, '/') + 1 : "vm";
	const char *dot = strrchr(file, '.');

	snprintf(out, 65, "%.*s", dot > file ? (int)(dot - file) : (int)strlen(file), file);
}

/* -- what the host has to have ---------------------------------------------------- */

static int need_kvm(struct error *err)
{
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (fd >= 0) {
		close(fd);
		return 0;
	}
	if (errno == EACCES)
		return error_set(err, -EACCES, "/dev/kvm: Permission denied: your user has to be in the group kvm");
	return error_errno(err, -errno, "no virtual machine can run here: it takes KVM (modprobe kvm_intel or "
			   "kvm_amd; inside a virtual machine, nested virtualisation): /dev/kvm");
}

/* -- while it runs ------------------------------------------------------------------ */

/* A merinod that dies is started again; the machine's requests wait for it. */
static void mind_merinod(struct run *r, struct timespec *last)
{
	struct error err = ERROR_INIT;
	struct timespec now;
	int status;

	clock_gettime(CLOCK_MONOTONIC, &now);
	if (r->merinod && own_daemon_ended(&r->merinod, &status))
		log_warning("merinod has ended: the machine's disks wait for a new one");
	if (r->merinod || now.tv_sec - last->tv_sec < RESTART_S)
		return;
	*last = now;
	if (run_restart_merinod(r, &err) < 0)
		log_error("%s", err.text);
}

/* Until the guest powers off, or a signal comes: then it is not asked. */
static int wait_end(struct run *r, struct error *err)
{
	const struct timespec nap = { .tv_nsec = NAP_NS };
	struct timespec last = { 0 };
	bool own = r->merinod != 0;
	int status = 0;

	while (!own_daemon_ended(&r->vmm, &status)) {
		if (pull_signalled()) {
			status = own_daemon_end(&r->vmm, END_S);
			break;
		}
		if (own)
			mind_merinod(r, &last);
		nanosleep(&nap, NULL);
	}
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return 0;
	return error_set(err, -ECHILD, "merino-vmm ended with %s %d", WIFEXITED(status) ? "status" : "signal",
			 WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
}

static int start(struct run *r, struct error *err)
{
	int rc = need_kvm(err);

	if (rc == 0)
		rc = vm_take(&r->vm, err);
	if (rc == 0)
		rc = run_disks_lock(r, err);
	if (rc == 0)
		rc = run_start_merinod(r, err);
	return rc ? rc : run_start_vmm(r, err);
}

static void end(struct run *r)
{
	own_daemon_end(&r->vmm, END_S);
	own_daemon_end(&r->merinod, END_S);
	vm_give_up(&r->vm);
}

/* -- the background ------------------------------------------------------------------ */

/* In the parent: the child's answer is one byte, or its end. */
static int wait_child(pid_t pid, int fd)
{
	char byte;
	int status;

	if (read(fd, &byte, 1) == 1)
		return EXIT_SUCCESS;
	waitpid(pid, &status, 0);
	return EXIT_FAILURE;
}

/* The child's lives on in a session of its own.  -1 in it, with *FD to answer on. */
static int detach(int *fd)
{
	int pipe_fds[2], code;
	pid_t pid;

	if (pipe2(pipe_fds, O_CLOEXEC) < 0)
		return EXIT_FAILURE;
	pid = fork();
	if (pid == 0) {
		close(pipe_fds[0]);
		setsid();
		*fd = pipe_fds[1];
		return -1;
	}
	close(pipe_fds[1]);
	code = pid > 0 ? wait_child(pid, pipe_fds[0]) : EXIT_FAILURE;
	close(pipe_fds[0]);
	return code;
}

/* It runs: what is said from now on goes to the log. */
static void answer(struct run *r, int fd)
{
	char path[PATH_MAX];
	int null = open("/dev/null", O_RDWR | O_CLOEXEC), log;

	vm_file(&r->vm, "log", path);
	log = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (write(fd, "", 1) != 1)
		log_warning("nobody waits for the start");
	close(fd);
	dup2(null, STDIN_FILENO);
	dup2(null, STDOUT_FILENO);
	dup2(log, STDERR_FILENO);
}

/* What the programs said, to whoever waits for the start. */
static void show_log(const struct run *r)
{
	char path[PATH_MAX], line[512];
	FILE *f;

	vm_file(&r->vm, "log", path);
	f = r->detach ? fopen(path, "re") : NULL;
	while (f && fgets(line, sizeof(line), f))
		fputs(line, stderr);
	if (f)
		fclose(f);
}

int run_main(int argc, char **argv)
{
	struct run r = { .memory = "1G", .cpus = "1", .vm = { .lock = -1 } };
	struct error err = ERROR_INIT;
	enum go go = parse(&r, argc, argv);
	char name[65];
	int rc, fd = -1, code;

	if (go != GO) {
		run_disks_clear(&r);
		return go == EXIT_OK ? EXIT_SUCCESS : EXIT_FAILURE;
	}
	default_name(&r, name);
	rc = vm_find(&r.vm, r.base, r.name ? r.name : name, &err);
	if (rc == 0 && r.detach && (code = detach(&fd)) >= 0) {
		run_disks_clear(&r);
		return code;
	}
	pull_signals_hold();
	if (rc == 0)
		rc = start(&r, &err);
	if (rc < 0 && r.vm.lock >= 0)
		show_log(&r);
	if (rc == 0 && r.detach)
		answer(&r, fd);
	if (rc == 0 && r.vmm)
		rc = wait_end(&r, &err);
	end(&r);
	run_disks_clear(&r);
	if (rc == -EINTR)
		return EXIT_SUCCESS;
	if (rc < 0)
		log_error("%s", err.text);
	return rc < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
