package health

// State is one of the five states, spelled as logs, metrics and /status show it.
type State string

const (
	// Starting: no key is proven yet.
	Starting State = "starting"
	// Ready: the last proof passed, and not too long ago.
	Ready State = "ready"
	// Coasting: proofs fail, the last success is younger than the grace.
	Coasting State = "coasting"
	// Unready: the grace is over, or the token refused the PIN.
	Unready State = "unready"
	// Revoked: the primary KEK is disabled, scheduled for destruction or gone
	// while the token answers. Only a newly published key ends it.
	Revoked State = "revoked"
)

// States lists all states.
func States() []State { return []State{Starting, Ready, Coasting, Unready, Revoked} }

// Serves reports whether Encrypt and Status are served in this state.
func (s State) Serves() bool { return s == Ready || s == Coasting }
