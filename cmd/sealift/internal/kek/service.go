package kek

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	kms "cloud.google.com/go/kms/apiv1"
	"cloud.google.com/go/kms/apiv1/kmspb"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	vault "github.com/hashicorp/vault/api"

	"github.com/sealift/sealift/image/sign"
)

// purpose is authenticated with the ciphertext where the service does that, so
// that what was encrypted for another purpose does not open as our key.
const purpose = "sealift key-encryption key v1"

// keyCipher is a key that is kept elsewhere. What it answers is not believed
// before it was checked.
type keyCipher interface {
	Encrypt(ctx context.Context, plain []byte) ([]byte, error)
	Decrypt(ctx context.Context, box []byte) ([]byte, error)
	Close() error
}

// openCipher opens the key that a URI names, in the vocabulary of image/sign:
//
//	hashivault://KEY, openbao://KEY         transit engine
//	awskms://[ENDPOINT]/ID, /ALIAS or /ARN
//	gcpkms://projects/P/locations/L/keyRings/R/cryptoKeys/K
//	azurekms://VAULT/KEY/VERSION
//	pkcs11:token=T;object=O?module-path=M   an AES key (RFC 7512)
//
// The key must be one that encrypts; credentials are found where each service's
// own tools find them.
func openCipher(ctx context.Context, uri string, password func() ([]byte, error)) (keyCipher, error) {
	scheme, rest, ok := strings.Cut(uri, ":")
	if !ok || len(uri) > 4096 {
		return nil, fmt.Errorf("URI %.40q names no key: want one of hashivault, openbao, awskms, gcpkms, azurekms or pkcs11", redacted(uri))
	}
	var c keyCipher
	var err error
	switch scheme {
	case "hashivault", "openbao":
		c, err = openTransit(rest)
	case "awskms":
		c, err = openAWS(ctx, rest)
	case "gcpkms":
		c, err = openGCP(ctx, rest)
	case "azurekms":
		c, err = openAzure(rest)
	case "pkcs11":
		var t *sign.TokenCipher
		t, err = sign.LoadTokenCipher(uri, password)
		c = token{t}
	default:
		return nil, fmt.Errorf("URI scheme %.40q is not known: want hashivault, openbao, awskms, gcpkms, azurekms or pkcs11", scheme)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", redacted(uri), err)
	}
	return c, nil
}

// redacted is the URI for messages: without what is behind a question mark,
// where somebody may have put a PIN.
func redacted(uri string) string {
	s, _, _ := strings.Cut(uri, "?")
	return s
}

// token is a key of a PKCS #11 token. Its calls cannot be interrupted.
type token struct{ c *sign.TokenCipher }

func (t token) Encrypt(_ context.Context, plain []byte) ([]byte, error) {
	return t.c.Seal(plain, []byte(purpose))
}

func (t token) Decrypt(_ context.Context, box []byte) ([]byte, error) {
	return t.c.Open(box, []byte(purpose))
}

func (t token) Close() error { return t.c.Close() }

// transit is a key of the transit engine of Vault or OpenBao.
type transit struct {
	client *vault.Client
	engine string // path at which the engine is mounted
	key    string
}

// openTransit finds the server and the token as image/sign's client does.
func openTransit(rest string) (*transit, error) {
	m := regexp.MustCompile(`^//(\w(?:[\w.-]*\w)?)$`).FindStringSubmatch(rest)
	if m == nil {
		return nil, errors.New("want hashivault://KEY")
	}
	address := first(os.Getenv("VAULT_ADDR"), os.Getenv("BAO_ADDR"))
	if address == "" {
		return nil, errors.New("VAULT_ADDR or BAO_ADDR is not set")
	}
	credential := first(os.Getenv("VAULT_TOKEN"), os.Getenv("BAO_TOKEN"))
	if credential == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return nil, fmt.Errorf("VAULT_TOKEN or BAO_TOKEN is not set: %w", err)
		}
		b, err := os.ReadFile(filepath.Join(home, ".vault-token"))
		if err != nil {
			return nil, fmt.Errorf("VAULT_TOKEN or BAO_TOKEN is not set: %w", err)
		}
		credential = strings.TrimSpace(string(b))
	}
	// The default takes VAULT_CACERT and the like from the environment.
	c := vault.DefaultConfig()
	if c.Error != nil {
		return nil, c.Error
	}
	c.Address = address
	client, err := vault.NewClient(c)
	if err != nil {
		return nil, err
	}
	client.SetToken(credential)
	return &transit{client: client, engine: first(os.Getenv("TRANSIT_SECRET_ENGINE_PATH"), "transit"), key: m[1]}, nil
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// ask makes one call of the engine and returns a text of its answer.
func (t *transit) ask(ctx context.Context, verb, field string, data map[string]any) (string, error) {
	answer, err := t.client.Logical().WriteWithContext(ctx, t.engine+"/"+verb+"/"+t.key, data)
	if err != nil {
		return "", err
	}
	if answer == nil {
		return "", errors.New("the transit engine gave no answer")
	}
	s, ok := answer.Data[field].(string)
	if !ok || s == "" {
		return "", fmt.Errorf("the transit engine's answer has no %s", field)
	}
	return s, nil
}

func (t *transit) Encrypt(ctx context.Context, plain []byte) ([]byte, error) {
	s, err := t.ask(ctx, "encrypt", "ciphertext", map[string]any{"plaintext": base64.StdEncoding.EncodeToString(plain)})
	return []byte(s), err
}

func (t *transit) Decrypt(ctx context.Context, box []byte) ([]byte, error) {
	s, err := t.ask(ctx, "decrypt", "plaintext", map[string]any{"ciphertext": string(box)})
	if err != nil {
		return nil, err
	}
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return nil, errors.New("the transit engine's plaintext is not base64")
	}
	return b, nil
}

func (*transit) Close() error { return nil }

// amazon is a symmetric key of AWS KMS.
type amazon struct {
	client *awskms.Client
	key    string // id, ARN or alias
}

func openAWS(ctx context.Context, rest string) (*amazon, error) {
	path, ok := strings.CutPrefix(rest, "//")
	endpoint, key, found := strings.Cut(path, "/")
	if !ok || !found || key == "" {
		return nil, errors.New("want awskms://[ENDPOINT]/ID, /ALIAS or /ARN")
	}
	c, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		return nil, err
	}
	if endpoint != "" {
		c.BaseEndpoint = aws.String("https://" + endpoint)
	}
	return &amazon{awskms.NewFromConfig(c), key}, nil
}

// awsContext is the encryption context, which the service authenticates.
func awsContext() map[string]string { return map[string]string{"purpose": purpose} }

func (a *amazon) Encrypt(ctx context.Context, plain []byte) ([]byte, error) {
	out, err := a.client.Encrypt(ctx, &awskms.EncryptInput{KeyId: &a.key, Plaintext: plain, EncryptionContext: awsContext()})
	if err != nil {
		return nil, err
	}
	return out.CiphertextBlob, nil
}

func (a *amazon) Decrypt(ctx context.Context, box []byte) ([]byte, error) {
	out, err := a.client.Decrypt(ctx, &awskms.DecryptInput{KeyId: &a.key, CiphertextBlob: box, EncryptionContext: awsContext()})
	if err != nil {
		return nil, err
	}
	return out.Plaintext, nil
}

func (*amazon) Close() error { return nil }

// google is a symmetric key of Google Cloud KMS.
type google struct {
	client *kms.KeyManagementClient
	key    string // projects/P/locations/L/keyRings/R/cryptoKeys/K
}

func openGCP(ctx context.Context, rest string) (*google, error) {
	key, _ := strings.CutPrefix(rest, "//")
	// A version is not named: the service finds that of a ciphertext itself.
	if ok, err := regexp.MatchString(`^projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+$`, key); !ok || err != nil {
		return nil, errors.New("want gcpkms://projects/P/locations/L/keyRings/R/cryptoKeys/K")
	}
	client, err := kms.NewKeyManagementClient(ctx)
	if err != nil {
		return nil, err
	}
	return &google{client, key}, nil
}

func (g *google) Encrypt(ctx context.Context, plain []byte) ([]byte, error) {
	out, err := g.client.Encrypt(ctx, &kmspb.EncryptRequest{Name: g.key, Plaintext: plain, AdditionalAuthenticatedData: []byte(purpose)})
	if err != nil {
		return nil, err
	}
	return out.GetCiphertext(), nil
}

func (g *google) Decrypt(ctx context.Context, box []byte) ([]byte, error) {
	out, err := g.client.Decrypt(ctx, &kmspb.DecryptRequest{Name: g.key, Ciphertext: box, AdditionalAuthenticatedData: []byte(purpose)})
	if err != nil {
		return nil, err
	}
	return out.GetPlaintext(), nil
}

func (g *google) Close() error { return g.client.Close() }

// azure is an RSA key of Azure Key Vault. RSA-OAEP authenticates no purpose;
// the key's id in the file does instead.
type azure struct {
	client       *azkeys.Client
	key, version string
}

func openAzure(rest string) (*azure, error) {
	m := regexp.MustCompile(`^//([^/]+)/([^/]+)/([a-z0-9]+)$`).FindStringSubmatch(rest)
	if m == nil {
		return nil, errors.New("want azurekms://VAULT/KEY/VERSION: another version of the key does not decrypt")
	}
	credential, err := azidentity.NewDefaultAzureCredential(nil)
	if err != nil {
		return nil, err
	}
	client, err := azkeys.NewClient("https://"+m[1]+"/", credential, nil)
	if err != nil {
		return nil, err
	}
	return &azure{client, m[2], m[3]}, nil
}

func (a *azure) parameters(value []byte) azkeys.KeyOperationParameters {
	algorithm := azkeys.EncryptionAlgorithmRSAOAEP256
	return azkeys.KeyOperationParameters{Algorithm: &algorithm, Value: value}
}

func (a *azure) Encrypt(ctx context.Context, plain []byte) ([]byte, error) {
	out, err := a.client.WrapKey(ctx, a.key, a.version, a.parameters(plain), nil)
	if err != nil {
		return nil, err
	}
	return out.Result, nil
}

func (a *azure) Decrypt(ctx context.Context, box []byte) ([]byte, error) {
	out, err := a.client.UnwrapKey(ctx, a.key, a.version, a.parameters(box), nil)
	if err != nil {
		return nil, err
	}
	return out.Result, nil
}

func (*azure) Close() error { return nil }
