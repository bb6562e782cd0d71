// Package cmdtest runs kekd and kekctl as their users do: by scripts
// (testscript, txtar archives) that call the real programs against real SoftHSM
// tokens. It is what the tests of both commands share.
//
// A script finds in its directory $WORK a PIN file (pin, mode 0600), SoftHSM's
// configuration, an empty directory of tokens, a directory for sockets (run) and
// a configuration (kekd.yaml). Nothing is shared between scripts, not even the
// address of the HTTP endpoint, so they run in parallel.
//
// Commands that act on a daemon act on the one that the variable NODE names,
// kekd at first: its configuration is NODE.yaml, its log NODE.log, its socket
// run/NODE.sock. Besides the commands of testscript there are:
//
//	token [LABEL]           make a SoftHSM token (default kekd); again makes a twin
//	keygen LABEL ID         make an AES-256 key with pkcs11-tool
//	keyattr LABEL A=V ...   change attributes (label, encrypt, decrypt) of a key
//	setpin FROM TO          change the token's PIN: the files hold the old and the new one
//	pin right|wrong         write the PIN file: the token's PIN, or one never used before
//	config [F=V] [-F] ...   write NODE.yaml: the defaults of the tests, fields set or left out
//	start                   start kekd and wait until its socket is bound
//	quit [TERM|INT|KILL]    end kekd by a signal; it must exit with 0 but for KILL, and leave no process
//	killworker              kill the HSM worker and wait for the next one
//	logged PATTERN          the log since start has a line that matches
//	readyz CODE PATTERN     what /readyz answers
//	get [-H HEADER] PATH [PATTERN]
//	                        print what the HTTP endpoint answers, which must match
//	kms [FLAGS] CALL        call the socket as kube-apiserver does, see kms.go
//	exits CODE PROGRAM ...  run a program that ends with this code
//	record PROGRAM ...      run a program, whatever it ends with, and keep its output
//	leakfree [FILE ...]     no PIN and no plaintext is in the files; without names: in
//	                        anything the script made, nor in what /proc shows of kekd
//	capture VAR FILE RE     set VAR to the first group of a match in a file, stdout or stderr
//	json FILE               the file, or stdout, is one JSON value
//	await COMMAND ...       repeat one of the checks above until it passes
package cmdtest
