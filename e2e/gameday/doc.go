// Package gameday walks docs/runbooks: for each page it breaks a cluster in the way
// that the page is about, types the page's own commands into a shell, and holds what
// they print against what the page shows. The cluster is real: etcd, kube-apiserver and
// kekd on a SoftHSM token, one for each page.
//
// A page is walked in this order:
//
//  1. All is well: the commands of "How to confirm" must not all show what the page
//     shows, or they could not tell.
//  2. The harm is done. They must show it now, and the test sees the harm by other means.
//  3. The commands of "How to know that it is over" must not all show what the page shows.
//  4. "What to do" is done, each command once, and must succeed.
//  5. "How to know that it is over" must show what the page shows, and the test sees by
//     other means that the cluster is well: kekd is ready, kube-apiserver writes, and
//     every Secret from before can be read.
//
// Commands stand in blocks of the language console, each behind "$ ", what it prints
// below it. What a machine can't play, such as the vendor's repair of an HSM, is marked
// by <!-- game day: NAME --> where it happens in the page; the scene has an act of that
// name. Blocks of other languages are not run; the log counts them.
package gameday
