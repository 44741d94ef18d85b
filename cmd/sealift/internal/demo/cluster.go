package demo

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/sealift/sealift/cmd/sealift/internal/lab"
)

// cluster is a real control plane: etcd, kube-apiserver and
// kube-controller-manager as processes in a namespace.
type cluster struct {
	dir  string // certificates, kubeconfigs, etcd's data and the logs
	bin  map[string]string
	ns   *lab.Namespace
	addr string // on which nodes reach the kube-apiserver

	procs []*process
}

type process struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{}
	err  error // set before done is closed
}

const apiPort = "6443"

// kubeconfig returns the path of the admin's kubeconfig.
func (c *cluster) kubeconfig() string { return filepath.Join(c.dir, "admin.kubeconfig") }

// start brings the control plane up and returns when it is ready.
func (c *cluster) start(ctx context.Context) error {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return fmt.Errorf("start control plane: %w", err)
	}
	if err := c.certificates(); err != nil {
		return fmt.Errorf("start control plane: %w", err)
	}
	f := func(name string) string { return filepath.Join(c.dir, name) }
	if err := c.run("etcd", "--data-dir", f("etcd"), "--listen-client-urls", "http://127.0.0.1:2379",
		"--advertise-client-urls", "http://127.0.0.1:2379", "--listen-peer-urls", "http://127.0.0.1:2380",
		"--initial-advertise-peer-urls", "http://127.0.0.1:2380", "--initial-cluster", "default=http://127.0.0.1:2380",
		"--unsafe-no-fsync"); err != nil {
		return err
	}
	if err := c.run("kube-apiserver", "--etcd-servers=http://127.0.0.1:2379",
		"--advertise-address="+c.addr, "--bind-address="+c.addr, "--secure-port="+apiPort,
		"--tls-cert-file="+f("apiserver.crt"), "--tls-private-key-file="+f("apiserver.key"), "--client-ca-file="+f("ca.crt"),
		"--kubelet-client-certificate="+f("kubelet-client.crt"), "--kubelet-client-key="+f("kubelet-client.key"),
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--enable-bootstrap-token-auth=true",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file="+f("sa.pub"), "--service-account-signing-key-file="+f("sa.key"),
		"--service-cluster-ip-range=10.96.0.0/16", "--anonymous-auth=false", "--allow-privileged=true",
		"--kubelet-preferred-address-types=InternalIP,Hostname", "--cert-dir="+f("apiserver-certs")); err != nil {
		return err
	}
	if err := c.await(ctx, "kube-apiserver ready", func() error {
		out, err := c.kubectl(ctx, "get", "--raw", "/readyz")
		if err == nil && strings.TrimSpace(out) != "ok" {
			err = fmt.Errorf("/readyz says %q", out)
		}
		return err
	}); err != nil {
		return err
	}
	// No group of bootstrappers has the right to be approved by the cluster
	// itself: the attestation service approves, one machine at a time.
	if err := c.run("kube-controller-manager", "--kubeconfig="+f("kcm.kubeconfig"), "--authentication-kubeconfig="+f("kcm.kubeconfig"),
		"--authorization-kubeconfig="+f("kcm.kubeconfig"), "--bind-address=127.0.0.1", "--leader-elect=false",
		"--use-service-account-credentials=true", "--controllers=*,token-cleaner-controller",
		"--service-account-private-key-file="+f("sa.key"), "--root-ca-file="+f("ca.crt"),
		"--cluster-signing-cert-file="+f("ca.crt"), "--cluster-signing-key-file="+f("ca.key"), "--cluster-signing-duration=24h",
		"--allocate-node-cidrs=false", "--service-cluster-ip-range=10.96.0.0/16", "--cert-dir="+f("kcm-certs")); err != nil {
		return err
	}
	if err := c.await(ctx, "default service account", func() error {
		_, err := c.kubectl(ctx, "get", "serviceaccount", "default")
		return err
	}); err != nil {
		return err
	}
	return c.apply(ctx, bindings)
}

// bindings let the kube-apiserver reach kubelets for logs and exec, and nodes
// renew their own certificates.
const bindings = `apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: kube-apiserver-to-kubelet}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: system:kubelet-api-admin}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: kube-apiserver-kubelet-client}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: node-certificate-renewal}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: system:certificates.k8s.io:certificatesigningrequests:selfnodeclient}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: system:nodes}]
`

// run starts one component in the background.
func (c *cluster) run(name string, args ...string) error {
	logFile := filepath.Join(c.dir, name+".log")
	log, err := os.Create(logFile)
	if err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	defer log.Close()
	cmd := c.ns.Command(context.Background(), c.bin[name], args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{name: name, cmd: cmd, log: logFile, done: make(chan struct{})}
	go func() { p.err = cmd.Wait(); close(p.done) }()
	c.procs = append(c.procs, p)
	return nil
}

// stop ends the components, the last one started first.
func (c *cluster) stop() {
	for i := len(c.procs) - 1; i >= 0; i-- {
		p := c.procs[i]
		p.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.done:
		case <-time.After(5 * time.Second):
			p.cmd.Process.Kill()
			<-p.done
		}
	}
	c.procs = nil
}

// await calls f until it succeeds, a component dies or ctx ends.
func (c *cluster) await(ctx context.Context, what string, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		err := f()
		if err == nil {
			return nil
		}
		for _, p := range c.procs {
			select {
			case <-p.done:
				return fmt.Errorf("wait for %s: %s ended: %w\n%s", what, p.name, p.err, tail(p.log, 15))
			default:
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w: %w", what, context.Cause(ctx), err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// kubectl runs the real client against the cluster and returns its output.
func (c *cluster) kubectl(ctx context.Context, args ...string) (string, error) {
	return c.kubectlInput(ctx, "", args...)
}

func (c *cluster) apply(ctx context.Context, yaml string) error {
	_, err := c.kubectlInput(ctx, yaml, "apply", "-f", "-")
	return err
}

// watch calls f with each state of the objects that kubectl is to get, the
// present one first, until f says that it is done. One client that stays
// connected: starting one again and again takes the CPU from the boxes.
func (c *cluster) watch(ctx context.Context, f func(json.RawMessage) (done bool), args ...string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := c.ns.Command(ctx, c.bin["kubectl"], append([]string{"--kubeconfig", c.kubeconfig(), "get", "--watch", "-o", "json"}, args...)...)
	cmd.Env = append(os.Environ(), "HOME="+c.dir)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("kubectl get --watch: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("kubectl get --watch: %w", err)
	}
	var object json.RawMessage
	for dec := json.NewDecoder(out); err == nil; {
		if err = dec.Decode(&object); err == nil && f(object) {
			cancel()
			_ = cmd.Wait() // it was ended
			return nil
		}
	}
	// The output ends when kubectl does, unless it is no JSON.
	cancel()
	err = errors.Join(err, cmd.Wait())
	return fmt.Errorf("kubectl get --watch %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
}

func (c *cluster) kubectlInput(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := c.ns.Command(ctx, c.bin["kubectl"], append([]string{"--kubeconfig", c.kubeconfig()}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = append(os.Environ(), "HOME="+c.dir) // keeps kubectl's discovery cache in the cluster's directory
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}

// certificates makes the cluster's PKI and kubeconfigs.
func (c *cluster) certificates() error {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	now := time.Now()
	serial := int64(1)
	template := func(cn string, org ...string) *x509.Certificate {
		serial++
		return &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: cn, Organization: org},
			NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(0, 1, 0), KeyUsage: x509.KeyUsageDigitalSignature}
	}
	ca := template("kubernetes")
	ca.IsCA, ca.BasicConstraintsValid, ca.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return err
	}
	caPEM := pemBlock("CERTIFICATE", caDER)
	if err := errors.Join(c.write("ca.crt", caPEM), c.writeKey("ca.key", caKey)); err != nil {
		return err
	}

	server := template("kube-apiserver")
	server.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	server.DNSNames = []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost"}
	server.IPAddresses = []net.IP{net.ParseIP("10.96.0.1"), net.ParseIP(c.addr), net.ParseIP("127.0.0.1")}
	leaves := map[string]*x509.Certificate{
		"apiserver":      server,
		"kubelet-client": template("kube-apiserver-kubelet-client"),
		"admin":          template("admin", "system:masters"),
		"kcm":            template("system:kube-controller-manager"),
	}
	for name, leaf := range leaves {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return err
		}
		if name != "apiserver" {
			leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		}
		der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
		if err != nil {
			return err
		}
		crt := pemBlock("CERTIFICATE", der)
		if err := errors.Join(c.write(name+".crt", crt), c.writeKey(name+".key", key)); err != nil {
			return err
		}
		if name == "admin" || name == "kcm" {
			keyDER, err := x509.MarshalPKCS8PrivateKey(key)
			if err != nil {
				return err
			}
			if err := c.writeKubeconfig(name+".kubeconfig", caPEM, crt, pemBlock("PRIVATE KEY", keyDER)); err != nil {
				return err
			}
		}
	}
	sa, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	saPub, err := x509.MarshalPKIXPublicKey(sa.Public())
	if err != nil {
		return err
	}
	return errors.Join(c.writeKey("sa.key", sa), c.write("sa.pub", pemBlock("PUBLIC KEY", saPub)))
}

func (c *cluster) writeKubeconfig(name string, ca, crt, key []byte) error {
	b, err := json.MarshalIndent(map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": "demo",
		"clusters": []any{map[string]any{"name": "demo", "cluster": map[string]any{
			"server": "https://" + net.JoinHostPort(c.addr, apiPort), "certificate-authority-data": ca}}},
		"users":    []any{map[string]any{"name": "demo", "user": map[string]any{"client-certificate-data": crt, "client-key-data": key}}},
		"contexts": []any{map[string]any{"name": "demo", "context": map[string]any{"cluster": "demo", "user": "demo"}}},
	}, "", "  ")
	if err != nil {
		return err
	}
	return c.write(name, b)
}

func (c *cluster) writeKey(name string, key any) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return c.write(name, pemBlock("PRIVATE KEY", der))
}

func (c *cluster) write(name string, b []byte) error {
	return os.WriteFile(filepath.Join(c.dir, name), b, 0o600)
}

func pemBlock(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// tail returns the last n lines of a file, indented, for error messages.
func tail(file string, n int) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return "    " + err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return "    " + strings.Join(lines, "\n    ")
}
