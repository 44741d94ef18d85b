package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

const adminToken = "admin-token"

// fakeAPI is a kube-apiserver as far as this package can tell: it
// authenticates bootstrap tokens by their secrets, lets their group create
// signing requests only if it is bound to do so, keeps who asked, and takes
// approvals only where they belong.
//
// It is also the servers of the other distros as far as joining goes: the
// automatic approver of k0s, and the supervisor of k3s and rke2.
type fakeAPI struct {
	t      *testing.T
	srv    *httptest.Server
	distro Distro
	clock  func() time.Time

	mu       sync.Mutex
	secrets  map[string]*secret
	bindings map[string]*roleBinding
	requests map[string]map[string]any
	nodes    map[string]*node
	created  map[string]time.Time      // of nodes
	fail     func(r *http.Request) int // an HTTP status to fail with, or 0
}

func newFakeAPI(t *testing.T) *fakeAPI {
	f := &fakeAPI{
		t: t, distro: Kubernetes, clock: time.Now, secrets: map[string]*secret{}, bindings: map[string]*roleBinding{},
		requests: map[string]map[string]any{}, nodes: map[string]*node{}, created: map[string]time.Time{},
	}
	f.srv = httptest.NewTLSServer(http.HandlerFunc(f.serve))
	t.Cleanup(f.srv.Close)
	return f
}

// kubeconfig writes the admin's.
func (f *fakeAPI) kubeconfig() string {
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.srv.Certificate().Raw})
	path := filepath.Join(f.t.TempDir(), "admin.conf")
	doc, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": "c",
		"clusters": []any{map[string]any{"name": "k", "cluster": map[string]any{"server": f.srv.URL, "certificate-authority-data": ca}}},
		"users":    []any{map[string]any{"name": "u", "user": map[string]any{"token": adminToken}}},
		"contexts": []any{map[string]any{"name": "c", "context": map[string]any{"cluster": "k", "user": "u"}}},
	})
	if err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(path, doc, 0o600); err != nil {
		f.t.Fatal(err)
	}
	return path
}

func (f *fakeAPI) serve(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	status := func(code int, message string) {
		w.WriteHeader(code)
		json.NewEncoder(w).Encode(map[string]any{"kind": "Status", "code": code, "message": message})
	}
	if f.fail != nil {
		if code := f.fail(r); code != 0 {
			status(code, "made to fail")
			return
		}
	}
	user, groups := f.authenticate(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
	if user == "" {
		status(401, "Unauthorized")
		return
	}
	if strings.HasPrefix(r.URL.Path, "/v1-") {
		f.serveSupervisor(w, r, user, groups, status)
		return
	}
	if user != "admin" && (r.Method != "POST" || r.URL.Path != csrPath || !f.mayBootstrap(groups)) {
		status(403, user+" may not "+r.Method+" "+r.URL.Path)
		return
	}
	answer := func(v any) { json.NewEncoder(w).Encode(v) }
	name := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	switch {
	case r.Method == "POST" && r.URL.Path == secretsPath:
		var s secret
		if err := json.NewDecoder(r.Body).Decode(&s); err != nil {
			status(400, err.Error())
			return
		}
		if f.secrets[s.Metadata.Name] != nil {
			status(409, "already exists")
			return
		}
		s.Metadata.CreationTimestamp = f.clock().UTC().Truncate(time.Second)
		f.secrets[s.Metadata.Name] = &s
		w.WriteHeader(201)
		answer(s)
	case r.Method == "GET" && r.URL.Path == secretsPath && r.Header.Get("Accept") == acceptMetadata:
		created := map[string]time.Time{}
		for name, s := range f.secrets {
			created[name] = s.Metadata.CreationTimestamp
		}
		f.serveMetadata(w, r, created, status)
	case r.Method == "GET" && r.URL.Path == secretsPath:
		if r.URL.Query().Get("labelSelector") != managedLabel+"=true" {
			status(400, "all secrets were asked for")
			return
		}
		var list secretList
		for _, s := range f.secrets {
			if s.Metadata.Labels[managedLabel] == "true" {
				list.Items = append(list.Items, *s)
			}
		}
		answer(list)
	case r.Method == "DELETE" && strings.HasPrefix(r.URL.Path, secretsPath+"/"):
		if f.secrets[name] == nil {
			status(404, "not found")
			return
		}
		delete(f.secrets, name)
		answer(map[string]any{"kind": "Status", "status": "Success"})
	case strings.HasPrefix(r.URL.Path, bindingPath):
		f.serveBinding(w, r, name, status)
	case r.Method == "POST" && r.URL.Path == csrPath:
		var c map[string]any
		if err := json.NewDecoder(r.Body).Decode(&c); err != nil {
			status(400, err.Error())
			return
		}
		spec := c["spec"].(map[string]any)
		spec["username"], spec["groups"] = user, groups // never as the client says
		if f.distro == K0s && slices.Contains(groups, "system:bootstrappers") {
			// The binding node-autoapprove-bootstrap, and kube-controller-manager.
			c["status"] = map[string]any{"conditions": []any{map[string]any{"type": "Approved", "status": "True", "reason": "AutoApproved"}}}
		}
		f.requests[c["metadata"].(map[string]any)["name"].(string)] = c
		w.WriteHeader(201)
		answer(c)
	case r.Method == "GET" && r.URL.Path == csrPath:
		if r.URL.Query().Get("fieldSelector") != "spec.signerName="+signer {
			status(400, "requests for other signers were asked for")
			return
		}
		items := []any{}
		for _, c := range f.requests {
			if c["spec"].(map[string]any)["signerName"] == signer {
				items = append(items, c)
			}
		}
		answer(map[string]any{"items": items})
	case r.Method == "PUT" && strings.HasSuffix(r.URL.Path, "/approval"):
		f.serveApproval(w, r, status)
	case r.Method == "GET" && r.URL.Path == nodesPath:
		f.serveMetadata(w, r, f.created, status)
	case r.Method == "GET" && strings.HasPrefix(r.URL.Path, nodesPath+"/"):
		if f.nodes[name] == nil {
			status(404, "not found")
			return
		}
		answer(f.nodes[name])
	default:
		status(404, r.Method+" "+r.URL.Path)
	}
}

func (f *fakeAPI) serveBinding(w http.ResponseWriter, r *http.Request, name string, status func(int, string)) {
	if r.Method == "GET" && r.URL.Path == bindingPath {
		var list roleBindingList
		for _, b := range f.bindings {
			list.Items = append(list.Items, *b)
		}
		json.NewEncoder(w).Encode(list)
		return
	}
	if r.Method == "GET" {
		if f.bindings[name] == nil {
			status(404, "not found")
			return
		}
		json.NewEncoder(w).Encode(f.bindings[name])
		return
	}
	var b roleBinding
	if err := json.NewDecoder(r.Body).Decode(&b); err != nil {
		status(400, err.Error())
		return
	}
	old := f.bindings[b.Metadata.Name]
	switch {
	case r.Method == "POST" && old != nil:
		status(409, "already exists")
		return
	case r.Method == "PUT" && old.RoleRef != b.RoleRef:
		status(422, "roleRef is immutable")
		return
	case r.Method == "PUT" && old.Metadata.ResourceVersion != b.Metadata.ResourceVersion:
		status(409, "resourceVersion")
		return
	}
	f.bindings[b.Metadata.Name] = &b
	json.NewEncoder(w).Encode(b)
}

// serveApproval takes a whole object whose spec is unchanged.
func (f *fakeAPI) serveApproval(w http.ResponseWriter, r *http.Request, status func(int, string)) {
	name := strings.TrimSuffix(strings.TrimPrefix(r.URL.Path, csrPath+"/"), "/approval")
	old := f.requests[name]
	if old == nil {
		status(404, "not found")
		return
	}
	var c map[string]any
	if err := json.NewDecoder(r.Body).Decode(&c); err != nil {
		status(400, err.Error())
		return
	}
	a, _ := json.Marshal(old["spec"])
	b, _ := json.Marshal(c["spec"])
	if string(a) != string(b) || c["kind"] != "CertificateSigningRequest" || c["apiVersion"] != "certificates.k8s.io/v1" {
		status(422, "not the request that is there")
		return
	}
	old["status"] = c["status"]
	json.NewEncoder(w).Encode(old)
}

// authenticate knows the admin and every bootstrap token that has not expired.
func (f *fakeAPI) authenticate(bearer string) (user string, groups []string) {
	if bearer == adminToken {
		return "admin", []string{"system:masters"}
	}
	for _, s := range f.secrets {
		id := string(s.Data["token-id"])
		expires, err := time.Parse(time.RFC3339, string(s.Data["expiration"]))
		// k8s.io/kubernetes plugin/pkg/auth/authenticator/token/bootstrap.
		if s.Type == "bootstrap.kubernetes.io/token" && s.Metadata.Name == "bootstrap-token-"+id && s.Metadata.Namespace == "kube-system" &&
			bearer == id+"."+string(s.Data["token-secret"]) && string(s.Data["usage-bootstrap-authentication"]) == "true" &&
			err == nil && f.clock().Before(expires) {
			return "system:bootstrap:" + id, append([]string{"system:bootstrappers", "system:authenticated"}, strings.Split(string(s.Data["auth-extra-groups"]), ",")...)
		}
	}
	return "", nil
}

func (f *fakeAPI) mayBootstrap(groups []string) bool {
	for _, b := range f.bindings {
		for _, s := range b.Subjects {
			for _, g := range groups {
				if b.RoleRef.Name == roleName && s.Kind == "Group" && s.Name == g {
					return true
				}
			}
		}
	}
	return false
}

// kubelet is what a node's kubelet does with a token.
type kubelet struct {
	f   *fakeAPI
	key *ecdsa.PrivateKey
}

func (f *fakeAPI) kubelet() *kubelet {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.t.Fatal(err)
	}
	return &kubelet{f, key}
}

// ask creates a signing request with a token and returns the HTTP status.
func (k *kubelet) ask(token, name string, template *x509.CertificateRequest, usages ...string) int {
	k.f.t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, template, k.key)
	if err != nil {
		k.f.t.Fatal(err)
	}
	body, err := json.Marshal(map[string]any{
		"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
		"metadata": map[string]any{"name": name, "uid": "kept-" + name},
		"spec": map[string]any{
			"request": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), "signerName": signer,
			"usages": usages, "username": "admin", "expirationSeconds": 3600,
		},
	})
	if err != nil {
		k.f.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(k.f.t.Context(), "POST", k.f.srv.URL+csrPath, strings.NewReader(string(body)))
	if err != nil {
		k.f.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := k.f.srv.Client().Do(req)
	if err != nil {
		k.f.t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

// nodeRequest is what a kubelet asks for.
func nodeRequest(name string) *x509.CertificateRequest {
	return &x509.CertificateRequest{Subject: pkix.Name{CommonName: "system:node:" + name, Organization: []string{"system:nodes"}}}
}

// condition returns the types of a request's conditions.
func (f *fakeAPI) conditions(name string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, err := json.Marshal(f.requests[name])
	if err != nil {
		f.t.Fatal(err)
	}
	var c csr
	if err := json.Unmarshal(b, &c); err != nil {
		f.t.Fatal(err)
	}
	out := ""
	for _, s := range c.status {
		out += s.Type
	}
	return out
}

// setNode makes a node, in a boot, Ready or not.
func (f *fakeAPI) setNode(name, boot string, ready bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := new(node)
	doc := fmt.Sprintf(`{"status":{"nodeInfo":{"bootID":%q},"conditions":[{"type":"Ready","status":%q}]}}`, boot, map[bool]string{true: "True", false: "False"}[ready])
	if err := json.Unmarshal([]byte(doc), n); err != nil {
		f.t.Fatal(err)
	}
	f.nodes[name] = n
	if _, ok := f.created[name]; !ok {
		f.created[name] = f.clock().UTC().Truncate(time.Second)
	}
}

// serveMetadata sends the metadata of objects, two in a page.
func (f *fakeAPI) serveMetadata(w http.ResponseWriter, r *http.Request, created map[string]time.Time, status func(int, string)) {
	if r.Header.Get("Accept") != acceptMetadata || r.URL.Query().Get("limit") == "" {
		status(400, "whole objects were asked for")
		return
	}
	var all []string
	for name := range created {
		all = append(all, name)
	}
	slices.Sort(all)
	from := 0
	if c := r.URL.Query().Get("continue"); c != "" {
		var err error
		if from, err = strconv.Atoi(c); err != nil || from > len(all) {
			status(410, "expired")
			return
		}
	}
	to := min(from+2, len(all))
	items := []any{}
	for _, name := range all[from:to] {
		items = append(items, map[string]any{"metadata": map[string]any{"name": name, "creationTimestamp": created[name]}})
	}
	metadata := map[string]any{}
	if to < len(all) {
		metadata["continue"] = strconv.Itoa(to)
	}
	json.NewEncoder(w).Encode(map[string]any{"metadata": metadata, "items": items})
}

// serveSupervisor is what k3s-io/k3s pkg/server/handlers/router.go and
// pkg/nodepassword/validate.go do with a request for a kubelet's certificate:
// any bootstrap token may ask for any name, and a name belongs to the first
// password that came with it.
func (f *fakeAPI) serveSupervisor(w http.ResponseWriter, r *http.Request, user string, groups []string, status func(int, string)) {
	if r.URL.Path != "/v1-"+string(f.distro)+"/client-kubelet.crt" || f.distro.requests() {
		status(404, r.URL.Path)
		return
	}
	if !slices.Contains(groups, "system:bootstrappers") {
		status(403, user)
		return
	}
	name, password := r.Header.Get(string(f.distro)+"-Node-Name"), r.Header.Get(string(f.distro)+"-Node-Password")
	if name == "" || password == "" {
		status(400, "node name or password not set")
		return
	}
	secretName := strings.ToLower(name + ".node-password." + string(f.distro))
	if have := f.secrets[secretName]; have == nil {
		f.secrets[secretName] = &secret{Metadata: objectMeta{Name: secretName, Namespace: "kube-system", CreationTimestamp: f.clock().UTC().Truncate(time.Second)}, Data: map[string][]byte{"hash": []byte(password)}}
	} else if string(have.Data["hash"]) != password {
		status(403, "unable to verify password for node "+name)
		return
	}
	fmt.Fprintf(w, "certificate of system:node:%s", name)
}

// join asks the supervisor for a kubelet's certificate, as k3s agent does, and
// returns the HTTP status.
func (f *fakeAPI) join(token, name, password string) int {
	f.t.Helper()
	req, err := http.NewRequestWithContext(f.t.Context(), "POST", f.srv.URL+"/v1-"+string(f.distro)+"/client-kubelet.crt", nil)
	if err != nil {
		f.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set(string(f.distro)+"-Node-Name", name)
	req.Header.Set(string(f.distro)+"-Node-Password", password)
	resp, err := f.srv.Client().Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

// tokens counts the bootstrap tokens.
func (f *fakeAPI) tokens() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for name := range f.secrets {
		if strings.HasPrefix(name, "bootstrap-token-") {
			n++
		}
	}
	return n
}
