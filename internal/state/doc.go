// Package state keeps the few facts that must survive a restart of kekd: one
// small JSON file for each, in one directory (mode 0700, files 0600).
//
// A save is atomic and durable: the new content is written beside the old, made
// durable, and renamed over it. After a crash or a full disk the file holds
// either the old facts or the new ones. Room for one save on a full disk is set
// aside, as a latched PIN may be the very next thing to keep. A file that cannot be
// read is an error that stops the start and is never taken for a missing one, since
// what is kept here (a revoked key, a latched PIN, use counts) must not be forgotten
// by accident. One file is an exception: kekd starts without a readable record of
// which key it used when (package rotation), since a new record, which claims nothing
// about earlier use, misleads nobody.
//
// No key, seed or PIN is kept. Who can write the directory can make kekd forget,
// so only root and kekd's own user may.
package state
