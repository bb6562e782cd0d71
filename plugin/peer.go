package plugin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
)

// peerProtocol names the way callers are told apart, for gRPC's introspection.
const peerProtocol = "so_peercred"

// PeerInfo says which process connected, as the kernel recorded it at connect
// time. A handler finds it in peer.FromContext(ctx).AuthInfo.
//
// A uid from a user namespace that kekd's does not map reads as the overflow uid
// 65534, and a pid from a foreign pid namespace as 0.
type PeerInfo struct {
	credentials.CommonAuthInfo

	UID, GID uint32
	PID      int32
}

// AuthType implements credentials.AuthInfo.
func (PeerInfo) AuthType() string { return peerProtocol }

// peerCredentials are gRPC transport credentials of the server's side that let
// in the uids on a list, up to a number of connections. The check is the
// handshake, so a refused caller is gone before a byte of it is read or a byte is
// sent to it.
type peerCredentials struct {
	allowed []uint32
	refused func(PeerInfo) // of another uid; called concurrently

	max     int
	open    *atomic.Int64  // connections let in and not closed yet
	tooMany func(PeerInfo) // above max; called concurrently
}

var errClientSide = errors.New("peer credentials serve the server's side only")

// ServerHandshake implements credentials.TransportCredentials.
func (c *peerCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	accepted, ok := raw.(*conn)
	if !ok {
		return nil, nil, fmt.Errorf("%T was not accepted from a Socket", raw)
	}
	info, err := peerOf(accepted.UnixConn)
	if err != nil {
		return nil, nil, fmt.Errorf("read the caller's credentials: %w", err)
	}
	if !slices.Contains(c.allowed, info.UID) {
		c.refused(info)
		return nil, nil, fmt.Errorf("uid %d is not allowed", info.UID)
	}
	if !accepted.admit(c.open, c.max) {
		c.tooMany(info)
		return nil, nil, fmt.Errorf("%d connections are open, which is the most", c.max)
	}
	return accepted, info, nil
}

// ClientHandshake implements credentials.TransportCredentials.
func (*peerCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errClientSide
}

// Info implements credentials.TransportCredentials.
func (*peerCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: peerProtocol}
}

// Clone implements credentials.TransportCredentials.
func (c *peerCredentials) Clone() credentials.TransportCredentials {
	clone := *c
	return &clone
}

// OverrideServerName implements credentials.TransportCredentials.
func (*peerCredentials) OverrideServerName(string) error { return errClientSide }

// peerOf reads SO_PEERCRED.
func peerOf(conn *net.UnixConn) (PeerInfo, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return PeerInfo{}, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return PeerInfo{}, err
	}
	if credErr != nil {
		return PeerInfo{}, credErr
	}
	return PeerInfo{
		// Bytes on a Unix socket do not leave the kernel.
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
		UID:            cred.Uid, GID: cred.Gid, PID: cred.Pid,
	}, nil
}
