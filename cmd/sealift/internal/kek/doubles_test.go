package kek

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"testing"

	kms "cloud.google.com/go/kms/apiv1"
	"cloud.google.com/go/kms/apiv1/kmspb"
	azfake "github.com/Azure/azure-sdk-for-go/sdk/azcore/fake"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys/fake"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// authenticated is what services authenticate with a ciphertext. What was
// encrypted by an earlier version does not open with another.
const authenticated = "sealift key-encryption key v1"

const googleKey = "projects/p/locations/l/keyRings/r/cryptoKeys/k"

// googleDouble answers as Google Cloud KMS does, for one key.
type googleDouble struct {
	kmspb.UnimplementedKeyManagementServiceServer
	t *testing.T
}

func (d googleDouble) Encrypt(_ context.Context, r *kmspb.EncryptRequest) (*kmspb.EncryptResponse, error) {
	if r.Name != googleKey || string(r.AdditionalAuthenticatedData) != authenticated {
		return nil, status.Errorf(codes.NotFound, "key %q, additional data %q", r.Name, r.AdditionalAuthenticatedData)
	}
	return &kmspb.EncryptResponse{Ciphertext: append([]byte("box "), r.Plaintext...)}, nil
}

func (d googleDouble) Decrypt(_ context.Context, r *kmspb.DecryptRequest) (*kmspb.DecryptResponse, error) {
	plain, ok := bytes.CutPrefix(r.Ciphertext, []byte("box "))
	if r.Name != googleKey || string(r.AdditionalAuthenticatedData) != authenticated || !ok {
		return nil, status.Errorf(codes.InvalidArgument, "key %q, additional data %q", r.Name, r.AdditionalAuthenticatedData)
	}
	return &kmspb.DecryptResponse{Plaintext: plain}, nil
}

func TestGoogleAuthenticatesThePurpose(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	kmspb.RegisterKeyManagementServiceServer(s, googleDouble{t: t})
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	client, err := kms.NewKeyManagementClient(t.Context(), option.WithEndpoint(l.Addr().String()), option.WithoutAuthentication(),
		option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())))
	if err != nil {
		t.Fatal(err)
	}
	g := &google{client, googleKey}
	holds(t, g)
	if err := g.Close(); err != nil {
		t.Error(err)
	}
}

// holds: what c encrypts it decrypts, and nothing else.
func holds(t *testing.T, c keyCipher) {
	t.Helper()
	box, err := c.Encrypt(t.Context(), []byte("the key"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := c.Decrypt(t.Context(), box); err != nil || string(got) != "the key" {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := c.Decrypt(t.Context(), []byte("another box")); err == nil || got != nil {
		t.Errorf("what it did not encrypt: got %q, %v", got, err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if got, err := c.Encrypt(gone, []byte("the key")); !errors.Is(err, context.Canceled) && status.Code(err) != codes.Canceled || got != nil {
		t.Errorf("a caller that went away: got %q, %v", got, err)
	}
}

// lasting answers before it looks again at a request's context: the fake panics where
// that ends in between.
type lasting struct{ policy.Transporter }

func (l lasting) Do(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	return l.Transporter.Do(r.WithContext(context.WithoutCancel(r.Context())))
}

// vaultToken is a credential for azureDouble.
type vaultToken struct{ azfake.TokenCredential }

func TestAzureWrapsWithTheVersionOfTheURI(t *testing.T) {
	known := func(name, version string, p azkeys.KeyOperationParameters) bool {
		// The fake takes both for the name.
		return strings.Trim(name+"/"+version, "/") == "fleet-kek/0123abc" && *p.Algorithm == azkeys.EncryptionAlgorithmRSAOAEP256
	}
	var double fake.Server
	double.WrapKey = func(_ context.Context, name, version string, p azkeys.KeyOperationParameters, _ *azkeys.WrapKeyOptions) (out azfake.Responder[azkeys.WrapKeyResponse], failed azfake.ErrorResponder) {
		if !known(name, version, p) {
			failed.SetResponseError(http.StatusNotFound, "KeyNotFound")
			return out, failed
		}
		out.SetResponse(http.StatusOK, azkeys.WrapKeyResponse{KeyOperationResult: azkeys.KeyOperationResult{Result: append([]byte("box "), p.Value...)}}, nil)
		return out, failed
	}
	double.UnwrapKey = func(_ context.Context, name, version string, p azkeys.KeyOperationParameters, _ *azkeys.UnwrapKeyOptions) (out azfake.Responder[azkeys.UnwrapKeyResponse], failed azfake.ErrorResponder) {
		plain, ok := bytes.CutPrefix(p.Value, []byte("box "))
		if !known(name, version, p) || !ok {
			failed.SetResponseError(http.StatusBadRequest, "BadParameter")
			return out, failed
		}
		out.SetResponse(http.StatusOK, azkeys.UnwrapKeyResponse{KeyOperationResult: azkeys.KeyOperationResult{Result: plain}}, nil)
		return out, failed
	}
	client, err := azkeys.NewClient("https://fleet.vault.azure.net/", &vaultToken{}, &azkeys.ClientOptions{
		ClientOptions: policy.ClientOptions{Transport: lasting{fake.NewServerTransport(&double)}}, DisableChallengeResourceVerification: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	a := &azure{client, "fleet-kek", "0123abc"}
	holds(t, a)
	if err := a.Close(); err != nil {
		t.Error(err)
	}
}
