/* SPDX-License-Identifier: BSD-3-Clause */
/* The terminal's mode: see terminal.h.
 *
 * Signals that end the process set it back first and are then raised again; after a stop
 * and "fg" it is raw once more, since shells put their own mode back.
 */
#include "vmm/terminal.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <termios.h>
#include <unistd.h>

#define ESCAPE 0x01			/* ^A */

static struct termios before, raw;
static volatile sig_atomic_t active;

void terminal_restore(void)
{
	if (!active)
		return;
	active = 0;
	tcsetattr(STDIN_FILENO, TCSANOW, &before);
}

static void dying(int signo)
{
	terminal_restore();
	raise(signo);			/* SA_RESETHAND: the default is back */
}

static void continued(int signo)
{
	int saved = errno;

	if (active)
		tcsetattr(STDIN_FILENO, TCSANOW, &raw);
	errno = saved;
}

static void watch_signals(void)
{
	static const int fatal[] = { SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSYS, SIGQUIT };
	struct sigaction sa = { .sa_handler = dying, .sa_flags = (int)(SA_RESETHAND | SA_NODEFER) };

	for (unsigned i = 0; i < sizeof(fatal) / sizeof(fatal[0]); i++)
		sigaction(fatal[i], &sa, NULL);
	sa = (struct sigaction){ .sa_handler = continued, .sa_flags = SA_RESTART };
	sigaction(SIGCONT, &sa, NULL);
	/* In the background, setting the mode would stop us. */
	signal(SIGTTOU, SIG_IGN);
}

int terminal_raw(struct error *err)
{
	if (tcgetattr(STDIN_FILENO, &before) < 0)
		return error_errno(err, -errno, "cannot ask the terminal for its mode");
	raw = before;
	raw.c_iflag &= ~(tcflag_t)(IGNBRK | BRKINT | PARMRK | ISTRIP | INLCR | IGNCR | ICRNL | IXON);
	raw.c_lflag &= ~(tcflag_t)(ECHO | ECHONL | ICANON | IEXTEN | ISIG);
	raw.c_cflag = (raw.c_cflag & ~(tcflag_t)(CSIZE | PARENB)) | CS8;
	raw.c_cc[VMIN] = 1;
	raw.c_cc[VTIME] = 0;
	watch_signals();
	active = 1;
	if (tcsetattr(STDIN_FILENO, TCSANOW, &raw) < 0) {
		active = 0;
		return error_errno(err, -errno, "cannot set the terminal's mode");
	}
	atexit(terminal_restore);
	return 0;
}

enum terminal_key terminal_key(bool *escape, uint8_t byte)
{
	if (!*escape) {
		*escape = byte == ESCAPE;
		return *escape ? TERMINAL_NOTHING : TERMINAL_SEND;
	}
	*escape = false;
	switch (byte) {
	case ESCAPE:
		return TERMINAL_SEND;
	case 'x':
		return TERMINAL_QUIT;
	case 'h':
	case '?':
		return TERMINAL_HELP;
	default:
		return TERMINAL_NOTHING;
	}
}
