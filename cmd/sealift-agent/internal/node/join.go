package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/profiles"
)

// joinToken renders the file with which the node joins, in the distro's form.
func joinToken(j *api.Join, format string) ([]byte, error) {
	switch format {
	case profiles.JoinKubeconfig:
		return bootstrapKubeconfig(j, bootstrapUser, bootstrapUser)
	case profiles.JoinK3s:
		if len(j.CA) == 0 || len(j.Token) == 0 {
			return nil, errors.New("join token: the CA or the token is missing")
		}
		return k3sToken(j.CA, j.Token)
	case profiles.JoinK0s:
		b, err := bootstrapKubeconfig(j, k0sCluster, k0sUser)
		if err != nil {
			return nil, err
		}
		defer clear(b)
		return k0sToken(b)
	}
	return nil, fmt.Errorf("join token: format %q is not known", format)
}

// spentToken is what is left in the place of the token once the node has
// joined: nothing that could join another one. Nil means that the file goes.
func spentToken(paths profiles.JoinPaths) ([]byte, error) {
	switch paths.Format {
	case profiles.JoinK3s:
		ca, err := os.ReadFile(paths.CA)
		if err != nil {
			return nil, err
		}
		return k3sToken(ca, []byte(k3sSpent))
	case profiles.JoinK0s:
		return []byte{}, nil
	}
	return nil, nil
}

// spendToken takes the secret out of the token's file.
func spendToken(paths profiles.JoinPaths) error {
	b, err := spentToken(paths)
	if err != nil {
		return err
	}
	if b != nil {
		return replaceFile(paths.Bootstrap, b, 0o600)
	}
	if err := os.Remove(paths.Bootstrap); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// joinServer returns the address of the cluster that the last join has left.
func joinServer(paths profiles.JoinPaths) (*url.URL, error) {
	if paths.Server == "" {
		return nil, nil
	}
	b, err := os.ReadFile(paths.Server)
	if err != nil {
		return nil, fmt.Errorf("address of the cluster: %w", err)
	}
	u, err := url.Parse(strings.TrimSpace(string(b)))
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("address of the cluster: %s holds %q, want https://host[:port]", paths.Server, b)
	}
	return u, nil
}

// urlHost is the host of an address as an address has it.
func urlHost(u *url.URL) string {
	if h := u.Hostname(); strings.Contains(h, ":") {
		return "[" + h + "]"
	}
	return u.Hostname()
}

// kubeconfig is the part of clientcmd's v1.Config that a bootstrap needs. It
// is written as JSON, which every reader of YAML reads.
type kubeconfig struct {
	APIVersion     string         `json:"apiVersion"`
	Kind           string         `json:"kind"`
	Clusters       []namedCluster `json:"clusters"`
	Users          []namedUser    `json:"users"`
	Contexts       []namedContext `json:"contexts"`
	CurrentContext string         `json:"current-context"`
}

type namedCluster struct {
	Name    string `json:"name"`
	Cluster struct {
		Server string `json:"server"`
		CA     []byte `json:"certificate-authority-data"`
	} `json:"cluster"`
}

type namedUser struct {
	Name string `json:"name"`
	User struct {
		Token string `json:"token"`
	} `json:"user"`
}

type namedContext struct {
	Name    string `json:"name"`
	Context struct {
		Cluster string `json:"cluster"`
		User    string `json:"user"`
	} `json:"context"`
}

// bootstrapUser is the name of the user, the cluster and the context in a
// bootstrap kubeconfig. Only k0s reads them.
const bootstrapUser = "sealift"

// bootstrapKubeconfig renders the file with which a kubelet asks for its
// first certificate, with these names of the cluster and the user.
func bootstrapKubeconfig(j *api.Join, name, user string) ([]byte, error) {
	u, err := url.Parse(j.Server)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("bootstrap kubeconfig: the server is %q, want https://host[:port]", j.Server)
	}
	if len(j.CA) == 0 || len(j.Token) == 0 {
		return nil, errors.New("bootstrap kubeconfig: the CA or the token is missing")
	}
	k := kubeconfig{APIVersion: "v1", Kind: "Config", CurrentContext: name}
	c := namedCluster{Name: name}
	c.Cluster.Server, c.Cluster.CA = j.Server, j.CA
	us := namedUser{Name: user}
	us.User.Token = string(j.Token)
	ctx := namedContext{Name: name}
	ctx.Context.Cluster, ctx.Context.User = name, user
	k.Clusters, k.Users, k.Contexts = []namedCluster{c}, []namedUser{us}, []namedContext{ctx}
	b, err := json.Marshal(k)
	if err != nil {
		return nil, fmt.Errorf("bootstrap kubeconfig: %w", err)
	}
	return b, nil
}

// prepareJoin leaves the CA and the bootstrap kubeconfig where the distro
// wants them. Without a join the node must have joined before.
func prepareJoin(j *api.Join, paths profiles.JoinPaths) error {
	if j == nil {
		for _, p := range []string{paths.CA, paths.Kubeconfig} {
			if _, err := os.Stat(p); err != nil {
				return fmt.Errorf("the service released no join token, and the node has not joined before: %w", err)
			}
		}
		// The file of the last boot is gone with /run.
		if err := spendToken(paths); err != nil {
			return fmt.Errorf("join: %w", err)
		}
		return nil
	}
	old, err := os.ReadFile(paths.CA)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("join: %w", err)
	}
	if err == nil && !bytes.Equal(old, j.CA) {
		// Another cluster, or its CA was replaced: what the old one issued is
		// of no use, and a kubelet that has it would not ask for more.
		if err := os.Remove(paths.Kubeconfig); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("join another cluster: %w", err)
		}
	}
	if err := replaceFile(paths.CA, j.CA, 0o644); err != nil {
		return fmt.Errorf("join: %w", err)
	}
	if paths.Server != "" {
		if err := replaceFile(paths.Server, []byte(j.Server+"\n"), 0o644); err != nil {
			return fmt.Errorf("join: %w", err)
		}
	}
	b, err := joinToken(j, paths.Format)
	if err != nil {
		return err
	}
	defer clear(b)
	if err := replaceFile(paths.Bootstrap, b, 0o600); err != nil {
		return fmt.Errorf("join: %w", err)
	}
	return nil
}

// forgetToken deletes the token once the kubelet has a
// certificate of its own, or the token has expired. It returns whether the
// node has joined.
func forgetToken(ctx context.Context, paths profiles.JoinPaths, expires time.Time) (joined bool, err error) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		joined = hasCertificate(paths)
		if joined || !expires.IsZero() && time.Now().After(expires) {
			if err := spendToken(paths); err != nil {
				return joined, fmt.Errorf("delete the join token: %w", err)
			}
			if joined {
				// The token is spent. A power cut must not take the
				// certificate, which the kubelet does not sync.
				err = syncState()
			}
			return joined, err
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-tick.C:
		}
	}
}

// syncState writes everything on the state partition to its disk.
func syncState() error {
	dir, err := os.Open("/var")
	if err != nil {
		return fmt.Errorf("sync the state: %w", err)
	}
	if err := errors.Join(unix.Syncfs(int(dir.Fd())), dir.Close()); err != nil {
		return fmt.Errorf("sync the state: %w", err)
	}
	return nil
}

// hasCertificate reports whether a kubelet got its certificate after the
// bootstrap kubeconfig was written. A kubelet that rotates certificates writes
// its kubeconfig before it has one, with the name of the file that will hold
// it, so that file counts and not the kubeconfig.
func hasCertificate(paths profiles.JoinPaths) bool {
	b, err := os.ReadFile(paths.Kubeconfig)
	if err != nil {
		return false
	}
	proof := paths.Kubeconfig
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "client-certificate:"); ok {
			proof = strings.Trim(strings.TrimSpace(v), `"'`)
			if !filepath.IsAbs(proof) {
				proof = filepath.Join(filepath.Dir(paths.Kubeconfig), proof)
			}
		}
	}
	// Stat follows kubelet-client-current.pem to the newest certificate.
	got, err := os.Stat(proof)
	if err != nil {
		return false
	}
	asked, err := os.Stat(paths.Bootstrap)
	return errors.Is(err, fs.ErrNotExist) || err == nil && !got.ModTime().Before(asked.ModTime())
}

// replaceFile writes a file in one step, durably, with its directory made.
func replaceFile(path string, b []byte, perm fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, perm)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Chmod(perm)
	}
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(path+".new"))
	}
	return os.Rename(path+".new", path)
}
