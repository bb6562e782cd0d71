// Package encryptionconfig reads the EncryptionConfiguration that the kube-apiserver of
// this node uses, and judges it: which provider encrypts each resource, whether that is
// this node's kekd, and what kube-apiserver would refuse or do otherwise than meant.
//
// It has types of its own. Those of k8s.io/apiserver would make kekctl a good deal
// larger, and they refuse a file at its first mistake where this package lists all.
// Keys in the file are never kept.
package encryptionconfig
