// Package cluster reaches a Kubernetes cluster as an administrator does: by a
// kubeconfig. It finds the API servers, asks each which KEK it uses, and opens
// connections into pods without listening on a port of this machine.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"kekd/internal/version"
)

// adminConfig is where kubeadm leaves a kubeconfig on a control-plane node.
const adminConfig = "/etc/kubernetes/admin.conf"

// requestTimeout bounds one request to an API server.
const requestTimeout = 30 * time.Second

// Cluster is a cluster and who we are to it. It is safe for concurrent use.
type Cluster struct {
	// Kube and Metadata are clients of the kubeconfig's server. They have no rate
	// limit of their own.
	Kube     kubernetes.Interface
	Metadata metadata.Interface

	config *rest.Config
}

// Connect reads a kubeconfig: the file at the path, else those of $KUBECONFIG,
// else ~/.kube/config, else kubeadm's on a control-plane node. An empty context
// means the file's current one. No server is asked yet.
func Connect(kubeconfig, context string) (*Cluster, error) {
	config, err := load(kubeconfig, context)
	if err != nil {
		return nil, err
	}
	config.UserAgent = "kekctl/" + version.Read().Version
	config.QPS = -1 // who must be gentle has a limit of its own
	config.Timeout = requestTimeout
	config.WarningHandlerWithContext = rest.NoWarnings{}
	c := &Cluster{config: config}
	if c.Kube, err = kubernetes.NewForConfig(config); err != nil {
		return nil, fmt.Errorf("--kubeconfig: %w", err)
	}
	if c.Metadata, err = metadata.NewForConfig(config); err != nil {
		return nil, fmt.Errorf("--kubeconfig: %w", err)
	}
	return c, nil
}

// Server is the address of the kubeconfig's server.
func (c *Cluster) Server() string { return c.config.Host }

// Ready asks the kubeconfig's server whether it is ready, its store and its KMS
// plugins included. A user who may not ask takes it to be.
func (c *Cluster) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	err := c.Kube.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	if apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) {
		return nil
	}
	return err
}

// readyTimeout bounds the wait for an answer.
const readyTimeout = 10 * time.Second

func load(kubeconfig, context string) (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.WarnIfAllMissing = false
	rules.ExplicitPath = kubeconfig
	if kubeconfig == "" && os.Getenv(clientcmd.RecommendedConfigPathEnvVar) == "" && !exists(clientcmd.RecommendedHomeFile) {
		rules.ExplicitPath = adminConfig
	}
	files, err := rules.Load()
	switch {
	case errors.Is(err, fs.ErrNotExist) && kubeconfig == "":
		return nil, fmt.Errorf("--kubeconfig: must name a file, since $%s is not set and neither ~/.kube/config nor %s is there",
			clientcmd.RecommendedConfigPathEnvVar, adminConfig)
	case err != nil:
		return nil, fmt.Errorf("--kubeconfig: %w", err)
	case clientcmdapi.IsConfigEmpty(files):
		return nil, fmt.Errorf("--kubeconfig: there is no cluster in %v", rules.GetLoadingPrecedence())
	}
	if context != "" && files.Contexts[context] == nil {
		return nil, fmt.Errorf("--context: the kubeconfig has no context %q", context)
	}
	config, err := clientcmd.NewNonInteractiveClientConfig(*files, context, nil, rules).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("--kubeconfig: %w", err)
	}
	return config, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
