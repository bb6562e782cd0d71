// Package page opens the status page of a real kekd in a real headless Chromium, with
// JavaScript turned off: in every state of the health, on a phone, a tablet and a
// desktop, in light and dark, and on paper. Nothing but the page may be asked for,
// nothing complained about, nothing may stick out of the window or of its box, and all
// text must have the contrast that WCAG 2.2 wants at level AA.
//
// Needed are chromium, softhsm2 and the binaries of `make build`. Without them the
// tests fail. With KEKD_SCREENSHOTS=DIR the pictures are kept there.
package page
