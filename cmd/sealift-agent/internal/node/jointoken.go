package node

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
)

// k3sSpent takes the place of the credentials in a token of k3s: of the form
// that its agent accepts, and of no use to a server. A node that has joined
// shows its certificate instead.
const k3sSpent = "node:joined"

// k3sToken makes a secure token of k3s and rke2: K10, the digest of the
// cluster's CA, "::" and the credentials. Their agents refuse a server whose CA
// has another digest. One with the credentials alone trusts whichever server
// answers first, at every start.
func k3sToken(ca, credentials []byte) ([]byte, error) {
	digest, err := k3sCADigest(ca)
	if err != nil {
		return nil, err
	}
	return append([]byte("K10"+digest+"::"), credentials...), nil
}

// k3sCADigest is the digest that a k3s server has for its CA: of the file's
// bytes if it is one certificate, or, so that the CA below it can be replaced,
// of the DER of the root above the first one if it is several.
func k3sCADigest(ca []byte) (string, error) {
	certs, err := parseCerts(ca)
	if err != nil {
		return "", fmt.Errorf("join token: the cluster's CA: %w", err)
	}
	data := ca
	if len(certs) > 1 {
		roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
		for _, c := range certs[1:] {
			if len(c.AuthorityKeyId) == 0 || bytes.Equal(c.AuthorityKeyId, c.SubjectKeyId) {
				roots.AddCert(c)
			} else {
				intermediates.AddCert(c)
			}
		}
		chains, err := certs[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
		if err == nil {
			data = chains[0][len(chains[0])-1].Raw
		}
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:]), nil
}

func parseCerts(b []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("no certificate in it")
	}
	return out, nil
}

// k0sUser is the user of a kubeconfig by which k0s tells a worker's token from
// a controller's. k0sCluster is the name of the cluster in it whose CA k0s
// takes, without a check that there is one (k0sproject/k0s,
// pkg/component/worker/utils.go).
const (
	k0sUser    = "kubelet-bootstrap"
	k0sCluster = "k0s"
)

// k0sToken makes a token of k0s: a kubeconfig, gzip, base64.
func k0sToken(kubeconfig []byte) ([]byte, error) {
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	_, err := w.Write(kubeconfig)
	if err := errors.Join(err, w.Close()); err != nil {
		return nil, fmt.Errorf("join token: %w", err)
	}
	return base64.StdEncoding.AppendEncode(nil, z.Bytes()), nil
}
