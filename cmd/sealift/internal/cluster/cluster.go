// Package cluster mints join tokens for single nodes of a Kubernetes cluster:
// it implements server.TokenMinter with bootstrap tokens
// (kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens). New
// reads a kubeconfig, Run prepares the cluster and watches over the tokens that
// are out.
//
// A bootstrap token by itself lets its holder ask for the certificate of any
// node. So the group that our tokens authenticate as may only create signing
// requests, nothing approves them but Run, and Run approves for each token one
// key, for the one node that the token was minted for. The token is taken back
// when that node is Ready. That is so where the distro lets it be: Distro says
// what each adds and takes away.
//
// The API is spoken in plain JSON over client-go's transport, which brings the
// authentication of any kubeconfig. The typed clientset would add two hundred
// packages for seven small requests.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
)

// Group is the group that our bootstrap tokens authenticate as, beside
// system:bootstrappers.
const Group = "system:bootstrappers:sealift"

// MaxTTL bounds how long a token is good for.
const MaxTTL = 10 * time.Minute

// Config is what a Cluster needs. All fields are required unless marked
// Optional.
type Config struct {
	// Distro of the cluster's servers. Optional; Kubernetes.
	Distro Distro
	// Kubeconfig is the path of a kubeconfig whose user may, in kube-system,
	// list, create and delete secrets; list certificate signing requests,
	// update their approval, and approve for the signer
	// kubernetes.io/kube-apiserver-client-kubelet; get and list nodes; and list,
	// get, create and update cluster role bindings (and bind
	// system:node-bootstrapper).
	Kubeconfig string
	// Context of the kubeconfig. Optional; its current context.
	Context string
	// Server is the API server's URL as nodes reach it. Optional; that of the
	// kubeconfig.
	Server string
	// TTL of a token. Optional; MaxTTL, which is also the most.
	TTL time.Duration
	// Log gets operational messages. They hold no secret.
	Log *slog.Logger
	// Poll is how often signing requests are looked for while a token is
	// out. Optional; 300 ms.
	Poll time.Duration
	// Clock returns the present time. Optional; time.Now.
	Clock func() time.Time
}

// Cluster mints tokens for one cluster. Its methods may be used by many
// goroutines.
type Cluster struct {
	c      Config
	api    *apiClient
	server string // for nodes
	ca     []byte // PEM, for nodes

	prepared atomic.Bool // the binding is there

	// foreign are nodes that had no token, as of the last look; used by Run only.
	foreign     []objectMeta
	nextForeign time.Time

	mu   sync.Mutex
	out  map[string]*token // tokens that are out, by id; guarded by mu
	wake chan struct{}     // tells Run that a token is out
}

var _ server.TokenMinter = (*Cluster)(nil)

// Events is told what becomes of tokens; server.Server is one. It is called
// until it returns no error, and may be told one thing twice after a restart.
type Events interface {
	TokenEvent(ctx context.Context, t audit.Token) error
	// TokenAlarm is told of what a person must look at.
	TokenAlarm(ctx context.Context, nodeName string, a audit.Alarm) error
	// ExpectsNode reports whether a node of that name is a machine's that was
	// given secrets.
	ExpectsNode(ctx context.Context, nodeName string) (bool, error)
}

// New reads the kubeconfig. It does not talk to the cluster; Run does.
func New(c Config) (*Cluster, error) {
	switch {
	case c.Kubeconfig == "":
		return nil, errors.New("cluster: no kubeconfig")
	case c.Log == nil:
		return nil, errors.New("cluster: no log")
	case c.TTL < 0 || c.TTL > MaxTTL:
		return nil, fmt.Errorf("cluster: token TTL %v is not between 0 and %v", c.TTL, MaxTTL)
	case c.Distro != "" && !slices.Contains(Distros(), c.Distro):
		return nil, fmt.Errorf("cluster: distro %q is not one of %q", c.Distro, Distros())
	case c.Poll < 0:
		return nil, fmt.Errorf("cluster: poll interval %v is negative", c.Poll)
	}
	if c.Distro == "" {
		c.Distro = Kubernetes
	}
	if c.TTL == 0 {
		c.TTL = MaxTTL
	}
	if c.Poll == 0 {
		c.Poll = 300 * time.Millisecond
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	cfg, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		&clientcmd.ClientConfigLoadingRules{ExplicitPath: c.Kubeconfig},
		&clientcmd.ConfigOverrides{CurrentContext: c.Context},
	).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("cluster: kubeconfig %s: %w", c.Kubeconfig, err)
	}
	if err := rest.LoadTLSFiles(cfg); err != nil {
		return nil, fmt.Errorf("cluster: kubeconfig %s: %w", c.Kubeconfig, err)
	}
	if len(cfg.CAData) == 0 {
		return nil, fmt.Errorf("cluster: kubeconfig %s: no certificate authority, which nodes need", c.Kubeconfig)
	}
	api, err := newAPIClient(cfg)
	if err != nil {
		return nil, fmt.Errorf("cluster: kubeconfig %s: %w", c.Kubeconfig, err)
	}
	address := c.Server
	if address == "" {
		address = api.base.String()
	}
	if u, err := url.Parse(address); err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("cluster: the server as nodes reach it is %q, want https://host[:port]", address)
	}
	return &Cluster{c: c, api: api, server: address, ca: cfg.CAData, out: map[string]*token{}, wake: make(chan struct{}, 1)}, nil
}

// prepare makes sure that the group of our tokens may do what it must, and
// takes up the tokens that an earlier process left out.
func (c *Cluster) prepare(ctx context.Context) error {
	if c.c.Distro.requests() {
		if err := c.ensureBinding(ctx); err != nil {
			return fmt.Errorf("prepare the cluster: %w", err)
		}
		if err := c.warnOfApprovers(ctx); err != nil {
			return fmt.Errorf("prepare the cluster: %w", err)
		}
	}
	var list secretList
	if err := c.api.do(ctx, "GET", secretsPath+"?labelSelector="+managedLabel+"%3Dtrue", nil, &list); err != nil {
		return fmt.Errorf("look for join tokens that are out: %w", err)
	}
	for i := range list.Items {
		t, err := adopt(&list.Items[i])
		if err != nil {
			c.c.Log.Error("join token not taken up", "secret", list.Items[i].Metadata.Name, "error", err)
			continue
		}
		c.add(t)
	}
	c.prepared.Store(true)
	return nil
}

// add puts a token under Run's watch.
func (c *Cluster) add(t *token) {
	c.mu.Lock()
	c.out[t.id] = t
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// outstanding returns the tokens that are out.
func (c *Cluster) outstanding() []*token {
	c.mu.Lock()
	defer c.mu.Unlock()
	ts := make([]*token, 0, len(c.out))
	for _, t := range c.out {
		ts = append(ts, t)
	}
	return ts
}

// binding is the one permission that our tokens have: to create certificate
// signing requests and read their own.
const (
	bindingPath = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
	bindingName = "sealift:node-bootstrapper"
	roleName    = "system:node-bootstrapper"
)

// ensureBinding creates the binding, or puts its subjects right.
func (c *Cluster) ensureBinding(ctx context.Context) error {
	want := roleBinding{
		APIVersion: "rbac.authorization.k8s.io/v1", Kind: "ClusterRoleBinding",
		Metadata: objectMeta{Name: bindingName},
		RoleRef:  roleRef{APIGroup: "rbac.authorization.k8s.io", Kind: "ClusterRole", Name: roleName},
		Subjects: []subject{{APIGroup: "rbac.authorization.k8s.io", Kind: "Group", Name: Group}},
	}
	var have roleBinding
	err := c.api.do(ctx, "GET", bindingPath+"/"+bindingName, nil, &have)
	if isStatus(err, 404) {
		err = c.api.do(ctx, "POST", bindingPath, &want, nil)
		if isStatus(err, 409) { // another replica was faster
			err = nil
		}
		if err != nil {
			return fmt.Errorf("create cluster role binding %s: %w", bindingName, err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("read cluster role binding %s: %w", bindingName, err)
	}
	if have.RoleRef != want.RoleRef {
		return fmt.Errorf("cluster role binding %s is to %s %s, want %s %s: delete it", bindingName, have.RoleRef.Kind, have.RoleRef.Name, want.RoleRef.Kind, want.RoleRef.Name)
	}
	if len(have.Subjects) == 1 && have.Subjects[0] == want.Subjects[0] {
		return nil
	}
	want.Metadata.ResourceVersion = have.Metadata.ResourceVersion
	if err := c.api.do(ctx, "PUT", bindingPath+"/"+bindingName, &want, nil); err != nil {
		return fmt.Errorf("correct cluster role binding %s: %w", bindingName, err)
	}
	return nil
}
