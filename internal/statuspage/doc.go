// Package statuspage is the page on which kekd tells an on-call person how it is: the
// health and why, the key ring, requests, seed cache, HSM, audit trail, and what has
// changed lately. It needs no Grafana, no JavaScript and nothing from elsewhere: one
// HTML document with its style sheet and its plots (inline SVG) within.
//
// It tells nothing that /status and /metrics do not, and changes nothing. Texts from
// outside kekd, such as labels of keys and what a module says, are escaped by
// html/template. The Content-Security-Policy allows the one style sheet, by its
// SHA-256, and the icon, a data: URL; no script can run, no frame may hold the page.
//
// A page is rendered at most once a second, whoever asks: it reads memory only, and
// some 300 kB of it. It does not reload by itself, for that takes the place from
// who reads it with a screen reader; ?refresh=10 and ?refresh=60 do, in seconds.
package statuspage
