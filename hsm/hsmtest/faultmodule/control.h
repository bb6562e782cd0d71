// What the fault-injecting module is told to do, call by call: see SetFaults in
// package hsmtest for the language.
#ifndef KEKD_FAULTS_CONTROL_H
#define KEKD_FAULTS_CONTROL_H

#include <stdbool.h>

// fault is what shall happen to one call.
struct fault {
	long ms;           // take so much longer
	long leak;         // MiB of memory to use up, and never to free
	long limit;        // how many sessions can be open; -1: no limit
	unsigned long rv;  // the return value, if has_rv
	bool has_rv;
	bool after;        // make the real call first, and then do the rest
	bool hang, crash, abort, exit;
	bool logout;       // log out behind the caller's back
	bool closeall;     // close all sessions behind the caller's back
	bool garble;       // change a bit of the output
	char iv[16];       // who chooses the IV of AES-GCM: "" is the caller
	char print[200];   // a line for standard error
};

// control_open reads where the control file is, from the environment. It
// returns false, with a line on standard error, when that is not said.
bool control_open(void);

// control_take counts a call and tells what shall happen to it, counting that
// down too. Safe for concurrent use, by several processes as well.
void control_take(const char *call, struct fault *f);

#endif
