// Package config reads and checks the configuration of kekd: one YAML file, no
// flags and no environment variables beside it. The Config type's comments are
// the manual; docs/configuration.md is generated from them.
//
// Reading is strict. An unknown key, a value of a wrong type, a key written
// twice, a second document: each is a problem, and all problems of a file are
// reported at once, each with its field, line, value and remedy, because an
// operator who fixes a control plane should not have to start kekd five times.
//
// Nothing secret belongs into the file. The PIN comes from a file or a systemd
// credential of its own, and the values of hsm.env, which a vendor may abuse
// for secrets, are never printed.
package config
