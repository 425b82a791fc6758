/** `--token` and `--insecure`, which every command that opens or uses a port of another device has. */
import { type Command, Option } from 'commander';
import { checkToken } from '../transport/token.js';
import { invalid } from '../validate.js';

/** The environment keeps a token out of the list of processes. */
export const TOKEN_VARIABLE = 'DROID_LLAMA_TOKEN';

/** For the help of a command with {@link tokenOption}. */
export const TOKEN_HELP = `A token on a command line can be read by every user of the device, e.g. in ps; ${TOKEN_VARIABLE} in the environment
says the same unseen.`;

/** No parser of commander's: its message for what cannot be a token would show it. {@link securityOf} checks it. */
export function tokenOption(description: string): Option {
  return new Option('--token <token>', description).env(TOKEN_VARIABLE);
}

export function insecureOption(description: string): Option {
  return new Option('--insecure', description);
}

export interface CliSecurity {
  readonly token?: string;
  readonly insecure?: true;
}

/**
 * What a parsed command says with the two options. `--insecure` overrides a token of the environment.
 * @throws DroidLlamaError `DROID_INVALID_ARGUMENT`
 */
export function securityOf(command: Command): CliSecurity {
  const { token, insecure } = command.opts<{ token?: string; insecure?: boolean }>();
  const typed = command.getOptionValueSource('token') === 'cli';
  if (insecure) {
    if (typed)
      invalid('--token and --insecure are both given; with a token RPC is encrypted, so leave one of them out.');
    return { insecure: true };
  }
  // An empty variable is how a shell leaves one out.
  if (token === undefined || (token === '' && !typed)) return {};
  return { token: checkToken(token) };
}

/** The environment of a child process that is to have this token, or none. */
export function environmentWith(token: string | undefined): NodeJS.ProcessEnv {
  const { [TOKEN_VARIABLE]: _, ...env } = process.env;
  return token === undefined ? env : { ...env, [TOKEN_VARIABLE]: token };
}
