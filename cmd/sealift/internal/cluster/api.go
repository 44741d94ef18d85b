package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"k8s.io/client-go/rest"
)

// The parts of Kubernetes objects that are used here, by the names of the API
// reference for v1.34. Objects are never written back from what was read
// partly: a signing request is, so it is kept whole (see csr).

type objectMeta struct {
	Name            string            `json:"name,omitempty"`
	Namespace       string            `json:"namespace,omitempty"`
	ResourceVersion string            `json:"resourceVersion,omitempty"`
	Labels          map[string]string `json:"labels,omitempty"`
	Annotations     map[string]string `json:"annotations,omitempty"`

	CreationTimestamp time.Time `json:"creationTimestamp,omitzero"` // by the API server; whole seconds
}

type secret struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Metadata   objectMeta        `json:"metadata"`
	Type       string            `json:"type"`
	Data       map[string][]byte `json:"data"`
}

type secretList struct {
	Items []secret `json:"items"`
}

type roleRef struct {
	APIGroup string `json:"apiGroup"`
	Kind     string `json:"kind"`
	Name     string `json:"name"`
}

type subject struct {
	APIGroup  string `json:"apiGroup,omitempty"`
	Kind      string `json:"kind"`
	Name      string `json:"name"`
	Namespace string `json:"namespace,omitempty"`
}

type roleBinding struct {
	APIVersion string     `json:"apiVersion"`
	Kind       string     `json:"kind"`
	Metadata   objectMeta `json:"metadata"`
	RoleRef    roleRef    `json:"roleRef"`
	Subjects   []subject  `json:"subjects"`
}

type roleBindingList struct {
	Items []roleBinding `json:"items"`
}

type csrSpec struct {
	Request    []byte   `json:"request"` // PEM of a PKCS #10 request
	SignerName string   `json:"signerName"`
	Usages     []string `json:"usages"`
	Username   string   `json:"username"`
	Groups     []string `json:"groups"`
}

type csrCondition struct {
	Type           string    `json:"type"` // Approved, Denied, Failed
	Status         string    `json:"status"`
	Reason         string    `json:"reason"`
	Message        string    `json:"message"`
	LastUpdateTime time.Time `json:"lastUpdateTime,omitzero"`
}

// csr is a certificates.k8s.io/v1 CertificateSigningRequest.
type csr struct {
	raw    json.RawMessage // the whole object
	name   string
	spec   csrSpec
	status []csrCondition
}

// UnmarshalJSON reads what is used and keeps the whole.
func (c *csr) UnmarshalJSON(b []byte) error {
	var v struct {
		Metadata objectMeta `json:"metadata"`
		Spec     csrSpec    `json:"spec"`
		Status   struct {
			Conditions []csrCondition `json:"conditions"`
		} `json:"status"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	*c = csr{raw: bytes.Clone(b), name: v.Metadata.Name, spec: v.Spec, status: v.Status.Conditions}
	return nil
}

// has reports whether a condition of that type is set.
func (c *csr) has(condition string) bool {
	for _, s := range c.status {
		if s.Type == condition && s.Status != "False" {
			return true
		}
	}
	return false
}

// withApproval returns the whole object with an Approved condition added.
func (c *csr) withApproval(reason, message string, now time.Time) (json.RawMessage, error) {
	var object map[string]json.RawMessage
	if err := json.Unmarshal(c.raw, &object); err != nil {
		return nil, err
	}
	status := map[string]json.RawMessage{}
	if s, ok := object["status"]; ok {
		if err := json.Unmarshal(s, &status); err != nil {
			return nil, err
		}
	}
	conditions := append(c.status, csrCondition{Type: "Approved", Status: "True", Reason: reason, Message: message, LastUpdateTime: now.UTC().Truncate(time.Second)})
	var err error
	if status["conditions"], err = json.Marshal(conditions); err != nil {
		return nil, err
	}
	if object["status"], err = json.Marshal(status); err != nil {
		return nil, err
	}
	// Items of a list have neither.
	object["apiVersion"], object["kind"] = json.RawMessage(`"certificates.k8s.io/v1"`), json.RawMessage(`"CertificateSigningRequest"`)
	return json.Marshal(object)
}

type csrList struct {
	Items []csr `json:"items"`
}

type node struct {
	Status struct {
		Conditions []struct {
			Type   string `json:"type"`
			Status string `json:"status"`
		} `json:"conditions"`
		NodeInfo struct {
			BootID string `json:"bootID"`
		} `json:"nodeInfo"`
	} `json:"status"`
}

// metadataList is a list of objects of which only the metadata was asked for,
// meta.k8s.io/v1 PartialObjectMetadataList.
type metadataList struct {
	Metadata struct {
		Continue string `json:"continue"`
	} `json:"metadata"`
	Items []struct {
		Metadata objectMeta `json:"metadata"`
	} `json:"items"`
}

func (n *node) ready() bool {
	for _, c := range n.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True"
		}
	}
	return false
}

// maxAnswer bounds an answer of the API server, bytes.
const maxAnswer = 64 << 20

// callTimeout bounds one call.
const callTimeout = 10 * time.Second

// statusError is a failure that the API server answered with.
type statusError struct {
	code    int // HTTP
	message string
}

func (e *statusError) Error() string { return fmt.Sprintf("kube-apiserver: %d: %s", e.code, e.message) }

// isStatus reports whether err is the API server's answer with that HTTP status.
func isStatus(err error, code int) bool {
	var s *statusError
	return errors.As(err, &s) && s.code == code
}

// apiClient speaks JSON with one API server.
type apiClient struct {
	base *url.URL
	http *http.Client
}

func newAPIClient(cfg *rest.Config) (*apiClient, error) {
	base, _, err := rest.DefaultServerUrlFor(cfg)
	if err != nil {
		return nil, err
	}
	client, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, err
	}
	if base.Scheme != "https" {
		return nil, fmt.Errorf("server is %q, want https", base.Redacted())
	}
	base.Path = strings.TrimSuffix(base.Path, "/")
	return &apiClient{base: base, http: client}, nil
}

const (
	acceptJSON = "application/json"
	// acceptMetadata has the API server send a list of any kind without spec
	// and status.
	acceptMetadata = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
)

// do makes one call. in and out are JSON documents; either may be nil.
func (a *apiClient) do(ctx context.Context, method, path string, in, out any) error {
	return a.call(ctx, method, path, acceptJSON, in, out)
}

func (a *apiClient) call(ctx context.Context, method, path, accept string, in, out any) (err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode %s %s: %w", method, path, err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, a.base.String()+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", accept)
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := a.http.Do(req)
	if err != nil {
		return err // names method and URL
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	if len(b) > maxAnswer {
		return fmt.Errorf("%s %s: answer is larger than %d bytes", method, path, maxAnswer)
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		var status struct {
			Message string `json:"message"`
		}
		if json.Unmarshal(b, &status) != nil || status.Message == "" {
			status.Message = http.StatusText(resp.StatusCode)
		}
		return &statusError{code: resp.StatusCode, message: status.Message}
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("%s %s: decode answer: %w", method, path, err)
	}
	return nil
}
