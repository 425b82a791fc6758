/** Checks at the edge of the API: each message says the value, the rule and, where there is one, the fix. */
import { DroidLlamaError } from './errors.js';

export function invalid(message: string): never {
  throw new DroidLlamaError('DROID_INVALID_ARGUMENT', message);
}

export function show(value: unknown): string {
  return typeof value === 'string' ? JSON.stringify(value) : String(value);
}

export function plainObject(name: string, value: unknown): void {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    invalid(`${name} is ${show(value)}; it must be an object.`);
  }
}

/** Refuses a key that is not an option, which is a typing error more often than not. */
export function knownKeys(name: string, value: object, known: readonly string[]): void {
  const unknown = Object.keys(value).find((key) => !known.includes(key));
  if (unknown === undefined) return;
  const similar = known.find((key) => key.toLowerCase() === unknown.toLowerCase());
  invalid(
    `${name} has no option ${show(unknown)}${similar ? `; did you mean ${similar}?` : `. It has ${known.join(', ')}.`}`,
  );
}

export function optionalString(name: string, value: unknown): string | undefined {
  if (value === undefined) return undefined;
  if (typeof value !== 'string' || value === '') invalid(`${name} is ${show(value)}; it must be a non-empty string.`);
  if (value.includes('\0')) invalid(`${name} holds a NUL character.`);
  return value;
}

export function optionalInteger(
  name: string,
  value: unknown,
  { min, max }: { min: number; max: number },
): number | undefined {
  if (value === undefined) return undefined;
  if (!Number.isInteger(value) || (value as number) < min || (value as number) > max) {
    invalid(`${name} is ${show(value)}; it must be a whole number from ${min} to ${max}.`);
  }
  return value as number;
}

export function optionalBoolean(name: string, value: unknown): boolean | undefined {
  if (value === undefined) return undefined;
  if (typeof value !== 'boolean') invalid(`${name} is ${show(value)}; it must be true or false.`);
  return value;
}

export function optionalOneOf<T extends string>(name: string, value: unknown, choices: readonly T[]): T | undefined {
  if (value === undefined) return undefined;
  if (!choices.includes(value as T)) invalid(`${name} is ${show(value)}; it must be one of ${choices.join(', ')}.`);
  return value as T;
}

export function stringArray(name: string, value: unknown): readonly string[] {
  if (value === undefined) return [];
  if (!Array.isArray(value) || value.some((item) => typeof item !== 'string' || item.includes('\0'))) {
    invalid(`${name} must be an array of strings.`);
  }
  return value as string[];
}
